"""What every test has."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState

from synth.base import cache


@pytest.fixture(scope="session", autouse=True)
def _own_scores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """AFS takes no scores from the user's cache and leaves none in it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "cache_folder", lambda: folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_norm_batches() -> Iterator[None]:
    """Settling batch normalisations costs less than the tiny trainings that end with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detect.training.loop.NUM_NORM_BATCHES", 2)
        yield


@pytest.fixture(autouse=True)
def _own_arithmetic() -> None:
    """No test computes in the precision that another one left in accelerate's state."""
    AcceleratorState._reset_state()

"""Losses on their way to accelerate's trackers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

from accelerate import Accelerator

from synth.base.errors import UserError
from synth.base.options import Tracker
from synth.base.progress import Update
from synth.base.resume import OnStep

PROJECT = "siaforge"
"""What trackers call the run; TensorBoard's files lie in a folder of this name."""


def require_tracker(tracker: Tracker) -> None:
    """Raise UserError where the tracker's package is not installed."""
    if tracker != "none" and find_spec(tracker) is None:
        raise UserError(
            f"--tracker: {tracker} is not installed; install it beside siaforge, or give "
            "--tracker none (trace.jsonl has the losses in any case)"
        )


@contextmanager
def tracked(accelerator: Accelerator, update: Update) -> Iterator[OnStep]:
    """Yield what logs every step's losses to the accelerator's trackers, if any, and to `update`.

    All processes enter it together.
    """
    if accelerator.log_with:
        accelerator.init_trackers(PROJECT)

    def on_step(done: int, total: int, terms: Mapping[str, float]) -> None:
        accelerator.log(dict(terms), step=done)
        update(done, total, terms)

    yield on_step
    for tracker in accelerator.trackers:
        tracker.finish()

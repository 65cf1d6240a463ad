import itertools

import numpy as np
import pytest

from synth.quality.kid import MAX_IMAGES, halves, kid, thinned


def draw(seed: int, num: int, shift: float = 0.0, dimensions: int = 6) -> np.ndarray:
    values = np.random.default_rng(seed).normal(shift, 1, (num, dimensions))
    return values.astype(np.float32)


def brute_force(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(np.dot(a.astype(float), b.astype(float))) / len(a) + 1) ** 3

    within_x = [kernel(a, b) for a, b in itertools.permutations(x, 2)]
    within_y = [kernel(a, b) for a, b in itertools.permutations(y, 2)]
    across = [kernel(a, b) for a, b in itertools.product(x, y)]
    return float(np.mean(within_x) + np.mean(within_y) - 2 * np.mean(across))


@pytest.mark.parametrize(("num_x", "num_y", "shift"), [(5, 9, 0.0), (12, 4, 0.7)])
def test_the_value_by_brute_force(num_x: int, num_y: int, shift: float) -> None:
    x, y = draw(0, num_x), draw(1, num_y, shift)
    measured = kid(x, y)
    assert measured is not None
    assert measured.value == pytest.approx(brute_force(x, y), rel=1e-6)


def test_the_value_agrees_with_torchmetrics() -> None:
    metric = pytest.importorskip(
        "torchmetrics.image.kid", reason="torchmetrics is no dependency of ours"
    )
    torch = pytest.importorskip("torch")
    x, y = draw(0, 20), draw(1, 20, 0.5)
    theirs = metric.poly_mmd(torch.from_numpy(x), torch.from_numpy(y))
    measured = kid(x, y)
    assert measured is not None
    assert measured.value == pytest.approx(float(theirs), rel=1e-4)


def test_it_is_unbiased_for_one_distribution_and_its_error_is_the_spread_over_repeats() -> None:
    def spread(shift: float) -> tuple[float, float, float]:
        found = [kid(draw(2 * n, 30), draw(2 * n + 1, 24, shift)) for n in range(200)]
        values = np.array([f.value for f in found if f is not None])
        errors = np.array([f.error for f in found if f is not None])
        return float(values.mean()), float(values.std()), float(errors.mean())

    mean, std, error = spread(0.0)
    assert abs(mean) < 3 * std / np.sqrt(200)
    assert 1 < error / std < 2  # overstated by up to sqrt(3) where nothing differs
    mean, std, error = spread(1.0)
    assert mean > 3 * std
    assert error / std == pytest.approx(1, abs=0.25)


def test_three_images_are_too_few() -> None:
    assert kid(draw(0, 3), draw(1, 9)) is None
    assert kid(draw(0, 9), draw(1, 3)) is None
    assert kid(draw(0, 4), draw(1, 4)) is not None


def test_halves_are_halves_without_replacement() -> None:
    columns = halves(7, np.random.default_rng(0))
    assert set(columns.ravel()) == {0.0, 1.0}
    assert (columns.sum(axis=0) == 3).all()
    assert len(np.unique(columns, axis=1).T) > 20


def test_large_sets_are_thinned_evenly() -> None:
    rows = np.arange(2 * MAX_IMAGES + 10, dtype=np.float32)[:, None]
    few = thinned(rows)
    assert len(few) == MAX_IMAGES
    assert set(np.diff(few[:, 0])) <= {2.0, 3.0}
    np.testing.assert_array_equal(thinned(rows[:5]), rows[:5])

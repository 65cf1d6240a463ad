import noise
import numpy as np
import pytest
from numpy.typing import NDArray

from synth.perlin import (
    MAX_EXPONENT,
    gradient_field,
    lattice_gradients,
    max_exponent,
    perlin_field,
    perlin_mask,
)


def pnoise2_field(
    size: tuple[int, int], cells: tuple[int, int], offset: tuple[int, int]
) -> NDArray[np.float64]:
    (height, width), (cells_y, cells_x) = size, cells
    ys = np.arange(height) * cells_y / height + offset[0]
    xs = np.arange(width) * cells_x / width + offset[1]
    return np.array([[noise.pnoise2(x, y) for x in xs] for y in ys])


@pytest.mark.parametrize(
    ("size", "cells", "offset"),
    [
        ((256, 256), (32, 32), (3, 200)),
        ((256, 256), (1, 8), (77, 0)),
        ((64, 128), (4, 2), (131, 9)),
        ((32, 64), (32, 16), (223, 220)),
        ((48, 80), (4, 8), (1, 2)),
        ((100, 60), (2, 4), (0, 5)),
    ],
)
def test_field_equals_pnoise2_at_every_pixel(
    size: tuple[int, int], cells: tuple[int, int], offset: tuple[int, int]
) -> None:
    field = perlin_field(size, cells, np.array(offset))
    assert field.shape == size
    assert field.dtype == np.float32
    np.testing.assert_allclose(field, pnoise2_field(size, cells, offset), rtol=0, atol=1e-5)


def test_field_wraps_with_the_period_of_pnoise2() -> None:
    # pnoise2 hashes a lattice coordinate by its last 8 bits
    field = perlin_field((64, 64), (8, 8), np.array([252, 250]))
    np.testing.assert_allclose(
        field, pnoise2_field((64, 64), (8, 8), (252, 250)), rtol=0, atol=1e-5
    )


def test_a_batch_of_offsets_equals_the_single_fields() -> None:
    offsets = np.array([[0, 0], [5, 250], [255, 17]])
    batch = perlin_field((32, 48), (4, 2), offsets)
    assert batch.shape == (3, 32, 48)
    for field, offset in zip(batch, offsets, strict=True):
        np.testing.assert_allclose(field, perlin_field((32, 48), (4, 2), offset), atol=1e-6)


def test_gradients_have_the_mean_square_that_the_scale_assumes() -> None:
    g_x, g_y = lattice_gradients()
    assert g_x.shape == g_y.shape == (256, 256)
    assert np.mean(g_x**2 + g_y**2) == 1.25


def test_coverage_statistics_are_those_of_realnet() -> None:
    # RealNet's 3000 draws: empty 4.6 %, mean 4.9 %, median 4.6 %, 5-95 % quantiles 0.1-9.3 %, max
    # 54 %. Tolerances: 3 standard errors of its draws and ours together, and for the share of empty
    # masks the 0.6 % that the fewer gradients of pnoise2 add.
    rng = np.random.default_rng(0)
    draws = 3000
    coverage = np.array([perlin_mask(rng, (256, 256)).mean() for _ in range(draws)])
    both = (2 / draws) ** 0.5
    assert abs(coverage.mean() - 0.049) < 3 * coverage.std() * both
    assert abs(np.median(coverage) - 0.046) < 0.002
    assert abs((coverage == 0).mean() - 0.052) < 3 * (0.052 * 0.948) ** 0.5 * both
    assert np.quantile(coverage, 0.05) < 0.002
    assert abs(np.quantile(coverage, 0.95) - 0.093) < 0.01
    assert 0.3 < coverage.max() < 0.7


def test_the_authors_field_has_gradients_of_length_one_in_all_directions() -> None:
    rng = np.random.default_rng(0)
    turn = rng.uniform(0, 2 * np.pi, (4, 3))
    g_x, g_y = np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)
    field = gradient_field((12, 10), g_x, g_y)
    for i, j in np.ndindex(field.shape):  # corner by corner, as Perlin has it
        y, x = i * 3 / 12, j * 2 / 10
        near = [(r, s) for r in (int(y), int(y) + 1) for s in (int(x), int(x) + 1)]
        want = sum(
            fade(1 - abs(y - r))
            * fade(1 - abs(x - s))
            * (g_x[r, s] * (x - s) + g_y[r, s] * (y - r))
            for r, s in near
        )
        assert abs(field[i, j] - want) < 1e-6


def fade(t: float) -> float:
    return t**3 * (t * (t * 6 - 15) + 10)


def test_coverage_of_the_official_masks() -> None:
    # the authors' 6,000 draws: 5.02 % covered, 6.0 % empty
    rng = np.random.default_rng(1)
    coverage = np.array([perlin_mask(rng, (256, 256), official=True).mean() for _ in range(3000)])
    spread = coverage.std() * (1 / 3000 + 1 / 6000) ** 0.5
    assert abs(coverage.mean() - 0.0502) < 3 * spread
    assert abs((coverage == 0).mean() - 0.060) < 3 * (0.06 * 0.94 * (1 / 3000 + 1 / 6000)) ** 0.5


def test_mask_depends_on_the_generator_alone() -> None:
    first = perlin_mask(np.random.default_rng(4), (64, 96))
    second = perlin_mask(np.random.default_rng(4), (64, 96))
    assert first.shape == (64, 96)
    assert first.dtype == np.bool_
    np.testing.assert_array_equal(first, second)
    others = [perlin_mask(np.random.default_rng(seed), (64, 96)) for seed in range(5, 9)]
    assert any((other != first).any() for other in others)


@pytest.mark.parametrize("size", [(256, 256), (64, 192), (37, 50), (8, 8), (1, 5)])
def test_any_size_gives_sparse_masks(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    masks = np.array([perlin_mask(rng, size) for _ in range(60)])
    assert masks.shape == (60, *size)
    assert masks.mean() < 0.2


def test_corners_emptied_by_the_rotation_stay_clear() -> None:
    rng = np.random.default_rng(2)
    share = np.mean([perlin_mask(rng, (64, 64)) for _ in range(600)], axis=0)
    corners = share[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert corners < 0.2 * share[16:48, 16:48].mean()


def test_cells_are_never_smaller_than_8_pixels() -> None:
    expected = {1: 0, 8: 0, 15: 0, 16: 1, 64: 3, 255: 4, 256: MAX_EXPONENT, 1024: MAX_EXPONENT}
    assert {size: max_exponent(size) for size in expected} == expected

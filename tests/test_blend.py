import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from synth.base.errors import UserError
from synth.blend import Blended, blend, blend_random, paste_random
from synth.perlin import perlin_mask


@pytest.fixture
def images() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    normal = rng.integers(0, 256, (32, 24, 3), dtype=np.uint8)
    return normal, rng.integers(0, 256, (32, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize("opacity", [0.0, 0.5, 0.7123, 1.0])
def test_blend_is_the_formula_pixel_by_pixel(
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]], opacity: float
) -> None:
    normal, source = images
    mask = np.random.default_rng(1).random((32, 24)) < 0.3
    expected = np.empty_like(normal)
    for y in range(32):
        for x in range(24):
            for c in range(3):
                m, i, p = float(mask[y, x]), float(normal[y, x, c]), float(source[y, x, c])
                expected[y, x, c] = round((1 - m) * i + m * (opacity * p + (1 - opacity) * i))
    np.testing.assert_array_equal(blend(normal, source, mask, opacity), expected)


def test_truncation_takes_the_level_below(
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    normal, source = images
    mask = np.ones((32, 24), np.bool_)
    exact = 0.7 * source.astype(np.float64) + (1 - 0.7) * normal
    np.testing.assert_array_equal(blend(normal, source, mask, 0.7, truncate=True), np.floor(exact))


def test_blend_leaves_its_arguments_and_the_unmasked_pixels_alone(
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    normal, source = images
    before = normal.copy()
    mask = np.zeros((32, 24), np.bool_)
    mask[3:9, 5:8] = True
    blended = blend(normal, source, mask, 0.9)
    np.testing.assert_array_equal(normal, before)
    np.testing.assert_array_equal(blended[~mask], normal[~mask])
    np.testing.assert_array_equal(blend(normal, normal, mask, 0.37), normal)
    flipped = normal[:, ::-1]  # not contiguous
    np.testing.assert_array_equal(
        blend(flipped, source[:, ::-1], mask[:, ::-1], 0.9), blended[:, ::-1]
    )


def test_rounding_does_not_darken() -> None:
    rng = np.random.default_rng(0)
    normal, source = rng.integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    mask = np.ones((128, 128), np.bool_)
    exact = 0.613 * source.astype(float) + (1 - 0.613) * normal
    error = blend(normal, source, mask, 0.613) - exact
    assert abs(error.mean()) < 4 * error.std() / error.size**0.5


def test_blend_refuses_other_sizes_and_opacities(
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    normal, source = images
    mask = np.ones((32, 24), np.bool_)
    with pytest.raises(ValueError, match=r"shapes \(32, 24, 3\), \(16, 24, 3\)"):
        blend(normal, source[:16], mask, 0.5)
    with pytest.raises(ValueError, match=r"opacity: got 1\.5"):
        blend(normal, source, mask, 1.5)


def test_random_blends_stay_in_the_foreground_and_are_never_empty(
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    normal, source = images
    foreground = np.zeros((32, 24), np.bool_)
    foreground[8:20, 6:18] = True
    opacities = []
    for seed in range(200):
        blended = blend_random(normal, foreground, source, np.random.default_rng(seed))
        assert blended.mask.any()
        assert not (blended.mask & ~foreground).any()
        np.testing.assert_array_equal(
            blended.image, blend(normal, source, blended.mask, blended.opacity)
        )
        opacities.append(blended.opacity)
    assert 0.5 <= min(opacities) < 0.52
    assert 0.98 < max(opacities) <= 1.0


def test_the_official_way_draws_once(images: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    normal, source = images
    foreground = np.zeros((32, 24), np.bool_)
    foreground[10:14, 10:14] = True
    empty = 0
    for seed in range(50):
        blended = blend_random(
            normal, foreground, source, np.random.default_rng(seed), official=True
        )
        once = perlin_mask(np.random.default_rng(seed), (32, 24), official=True) & foreground
        np.testing.assert_array_equal(blended.mask, once)
        if not once.any():
            empty += 1
            np.testing.assert_array_equal(blended.image, normal)
    assert 0 < empty < 50


def test_same_generator_same_sample(images: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    normal, source = images
    foreground = np.ones((32, 24), np.bool_)
    first, second = (
        blend_random(normal, foreground, source, np.random.default_rng(7), opacity=(0.2, 0.4))
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.image, second.image)
    assert first.opacity == second.opacity
    assert 0.2 <= first.opacity <= 0.4


def test_an_empty_foreground_is_named(
    images: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    normal, source = images
    foreground = np.zeros((32, 24), np.bool_)
    with pytest.raises(UserError, match="foreground: got 0 of 768 pixels"):
        blend_random(normal, foreground, source, np.random.default_rng(0))
    allowed = blend_random(normal, foreground, source, np.random.default_rng(0), official=True)
    assert not allowed.mask.any()


# Cut-outs


def cut_out(h: int, w: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    rng = np.random.default_rng(h * w)
    return rng.integers(0, 256, (h, w, 3), dtype=np.uint8), rng.random((h, w)) < 0.6


def places_of(
    blended: Blended,
    normal: NDArray[np.uint8],
    foreground: NDArray[np.bool_],
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
) -> list[tuple[int, int]]:
    """Every offset at which pasting pixel by pixel gives this image and this mask."""
    (H, W), (h, w) = foreground.shape, mask.shape
    found = []
    for top, left in itertools.product(range(-h + 1, H), range(-w + 1, W)):
        wanted, marked = normal.copy(), np.zeros_like(foreground)
        for y, x in np.argwhere(mask) + np.array((top, left)):
            if 0 <= y < H and 0 <= x < W and foreground[y, x]:
                wanted[y, x] = image[y - top, x - left]
                marked[y, x] = True
        if (marked == blended.mask).all() and (wanted == blended.image).all():
            found.append((top, left))
    return found


@pytest.mark.parametrize("whole", [True, False])
def test_a_cut_out_is_pasted_somewhere_on_the_foreground(whole: bool) -> None:
    normal = np.random.default_rng(0).integers(0, 256, (14, 12, 3), dtype=np.uint8)
    foreground = np.ones((14, 12), np.bool_)
    if not whole:
        foreground[:, :5] = foreground[:, 8:] = False  # narrower than the cut-out
    image, mask = cut_out(5, 4)
    places = set()
    for seed in range(12):
        blended = paste_random(normal, foreground, image, mask, np.random.default_rng(seed))
        (place,) = places_of(blended, normal, foreground, image, mask)
        places.add(place)
        area = np.count_nonzero(blended.mask)
        assert area == mask.sum() if whole else 0 < area < mask.sum()
        assert blended.opacity == 1.0
    assert len(places) > 3


def test_a_place_for_all_of_a_cut_out_is_preferred() -> None:
    foreground = np.zeros((24, 24), np.bool_)
    foreground[2:12, 2:12] = True
    foreground[20, :] = True  # where hardly any of it fits
    image, mask = np.full((5, 5, 3), 9, np.uint8), np.ones((5, 5), np.bool_)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        blended = paste_random(np.zeros((24, 24, 3), np.uint8), foreground, image, mask, rng)
        assert np.count_nonzero(blended.mask) == 25


def test_a_cut_out_larger_than_the_image_is_cut_off() -> None:
    image, mask = np.full((40, 40, 3), 9, np.uint8), np.ones((40, 40), np.bool_)
    normal, rng = np.zeros((8, 8, 3), np.uint8), np.random.default_rng(0)
    blended = paste_random(normal, np.ones((8, 8), np.bool_), image, mask, rng)
    assert blended.mask.all()
    assert (blended.image == 9).all()
    with pytest.raises(UserError, match="foreground: empty"):
        paste_random(normal, np.zeros((8, 8), np.bool_), image, mask, rng)

import numpy as np
import pytest
from matplotlib import colormaps

from detect import heatmap


def test_colours_are_inferno_over_the_given_scale():
    scores = np.linspace(2, 4, 256, dtype=np.float32)[None]
    expected = np.round(255 * colormaps["inferno"](np.arange(256))[None, :, :3])
    got = heatmap.heat_picture(scores, 2, 4).astype(float)
    assert np.abs(got - expected).max() <= 2
    ends = heatmap.heat_picture(np.array([[-9.0, 99.0]]), 2, 4)
    assert (ends[0] == heatmap.heat_picture(np.array([[2.0, 4.0]]), 2, 4)[0]).all()


def test_overlay_leaves_the_background_and_heats_the_rest():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    before = image.copy()
    scores = np.zeros((5, 7), np.float32)
    scores[2, 3] = 1
    got = heatmap.overlay(image, scores, 0, 1)
    cold = scores == 0
    assert (got[cold] == image[cold]).all()
    hot = heatmap.heat_picture(scores, 0, 1)[2, 3].astype(float)
    share = heatmap.MAX_OPACITY
    assert got[2, 3] == pytest.approx((1 - share) * image[2, 3] + share * hot, abs=1)
    assert (image == before).all()


def test_a_constant_map_is_cold():
    image = np.full((4, 4, 3), 100, np.uint8)
    scores = np.full((4, 4), 0.3, np.float32)
    heat = heatmap.heat_range([scores])
    assert (heatmap.overlay(image, scores, *heat) == image).all()


def test_outline_encloses_and_does_not_cover():
    image = np.full((20, 30, 3), 100, np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[5:9, 10:16] = True
    got = heatmap.outline(image, mask)
    assert (got[mask] == 100).all()
    assert (got[4, 10:16] == heatmap.OUTLINE_RGB).all()
    assert (got[3, 10:16] == 0).all()
    assert (got[2] == 100).all()
    assert (heatmap.outline(image, np.zeros_like(mask)) == image).all()
    assert (image == 100).all()


def test_range_is_median_to_almost_the_maximum():
    maps = [np.arange(40000, dtype=np.float32).reshape(200, 200), np.zeros((8, 8), np.float32)]
    low, high = heatmap.heat_range(maps)
    assert low == pytest.approx(20000, abs=800)
    assert high == pytest.approx(40000, abs=1000)


def test_sizes_must_agree():
    image = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(ValueError, match="map or mask"):
        heatmap.overlay(image, np.zeros((5, 4), np.float32), 0, 1)
    with pytest.raises(ValueError, match="map or mask"):
        heatmap.outline(image, np.zeros((5, 4), bool))

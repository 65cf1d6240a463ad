import itertools

import numpy as np
import pytest
from sklearn import metrics as sk

from detect import metrics
from synth.errors import UserError


def random_maps(rng, num_images=6, levels=None):
    """Maps of different sizes with blobs that score higher; `levels` rounds scores into ties."""
    masks, maps = [], []
    for index in range(num_images):
        height, width = rng.integers(9, 17, 2)
        mask = np.zeros((height, width), bool)
        if index % 3:
            mask[1:3, 1:4] = mask[3, 4] = True  # touches at a corner: one region of 7 pixels
            mask[-2:, -3:] = True
        scores = rng.random((height, width)) + 0.4 * mask
        if levels:
            scores = np.round(scores * levels) / levels
        masks.append(mask)
        maps.append(scores.astype(np.float32))
    return masks, maps


def flood_regions(mask):
    """8-connected regions by flood fill: the definition, without OpenCV."""
    todo, regions = set(zip(*np.nonzero(mask), strict=True)), []
    while todo:
        stack, region = [todo.pop()], []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & todo
            todo -= near
            stack.extend(near)
        regions.append(tuple(np.transpose(region)))
    return regions


def brute_force_aupro(masks, maps, limit):
    """A literal loop over every distinct threshold, then trapezoids up to the limit."""
    regions = [(i, where) for i, mask in enumerate(masks) for where in flood_regions(mask)]
    normal = np.concatenate([m[~mask] for mask, m in zip(masks, maps, strict=True)])
    points = [(0.0, 0.0)]
    for t in np.unique(np.concatenate([m.ravel() for m in maps]))[::-1]:
        pro = np.mean([np.mean(maps[i][where] >= t) for i, where in regions])
        points.append((float(np.mean(normal >= t)), float(pro)))
    area = 0.0
    for (x_0, y_0), (x_1, y_1) in itertools.pairwise(points):
        if x_0 >= limit or x_1 == x_0:
            continue
        end = min(x_1, limit)
        y_end = y_0 + (y_1 - y_0) * (end - x_0) / (x_1 - x_0)
        area += (end - x_0) * (y_0 + y_end) / 2
    return area / limit


@pytest.mark.parametrize("levels", [None, 40, 3])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_equals_a_loop_over_every_threshold(levels, limit):
    masks, maps = random_maps(np.random.default_rng(1), levels=levels)
    expected = brute_force_aupro(masks, maps, limit)
    assert metrics.aupro(masks, maps, limit) == pytest.approx(expected, abs=1e-6)
    assert metrics.pixel_metrics(masks, maps, limit).aupro == metrics.aupro(masks, maps, limit)


def test_aupro_by_hand():
    mask = np.array([[True, False, False, False, True, True]])
    scores = np.array([[0.9, 0.8, 0.7, 0.1, 0.75, 0.0]], np.float32)
    # regions {0.9} and {0.75, 0}; FPR 0..1/3: PRO 1/2; 1/3..2/3 and on: 3/4; the last 1/4 at FPR 1
    assert metrics.aupro([mask], [scores], 1.0) == pytest.approx((0.5 + 0.75 + 0.75) / 3)
    assert metrics.aupro([mask], [scores], 0.5) == pytest.approx((0.5 / 3 + 0.75 / 6) / 0.5)


def test_aupro_extremes():
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:5] = True
    assert metrics.aupro([mask], [mask.astype(np.float32)]) == 1.0
    assert metrics.aupro([mask], [1.0 - mask.astype(np.float32)]) == 0.0
    assert metrics.aupro([mask], [np.ones((8, 8), np.float32)]) == pytest.approx(0.15)
    assert metrics.aupro([mask], [np.ones((8, 8), np.float32)], 1.0) == pytest.approx(0.5)


@pytest.mark.parametrize("levels", [None, 10, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_image_metrics_equal_scikit_learn(levels, dtype):
    rng = np.random.default_rng(2)
    labels = rng.random(301) < 0.3
    scores = (rng.normal(size=301) + labels).astype(dtype)
    if levels:
        scores = np.round(scores * levels) / levels
    area, precision = metrics.image_metrics(labels, scores)
    assert area == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert precision == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-12)
    assert metrics.auroc(labels, scores) == area
    assert metrics.average_precision(labels, scores) == precision


@pytest.mark.parametrize("levels", [None, 20])
def test_pixel_metrics_equal_scikit_learn(levels):
    masks, maps = random_maps(np.random.default_rng(3), num_images=12, levels=levels)
    labels = np.concatenate([mask.ravel() for mask in masks])
    scores = np.concatenate([m.ravel() for m in maps])
    got = metrics.pixel_metrics(masks, maps)
    assert got.auroc == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-9)
    assert got.average_precision == pytest.approx(
        sk.average_precision_score(labels, scores), abs=1e-9
    )


def test_constant_scores_give_exactly_one_half():
    labels = np.arange(7) < 3
    assert metrics.auroc(labels, np.full(7, 0.1)) == 0.5
    assert metrics.average_precision(labels, np.full(7, 0.1)) == 3 / 7


def test_a_wrong_detector_is_not_flipped():
    labels = np.array([False, True, True])
    assert metrics.auroc(labels, np.array([0.9, 0.1, 0.2])) == 0.0


def test_metrics_depend_on_the_order_only():
    masks, maps = random_maps(np.random.default_rng(4))
    maps = [m.astype(np.float64) for m in maps]
    assert metrics.pixel_metrics(masks, [np.exp(3 * m) - 5 for m in maps]) == (
        metrics.pixel_metrics(masks, maps)
    )


def test_small_and_large_regions_count_alike():
    """One large found region and one missed pixel: the overlap is a half, pixel AUROC near 1."""
    mask = np.zeros((20, 20), bool)
    mask[:9, :9] = mask[15, 15] = True
    scores = np.where(mask, 2.0, 1.0).astype(np.float32)
    scores[15, 15] = 0.0
    got = metrics.pixel_metrics([mask], [scores])
    # the found region adds 1 / 2 at once; the normal pixels tie, so the curve is flat to FPR 1
    assert got.aupro == pytest.approx(0.5)
    assert got.auroc == pytest.approx(81 / 82)


def test_roc_curve_equals_scikit_learns_corners():
    rng = np.random.default_rng(5)
    labels = rng.random(60) < 0.4
    scores = np.round(rng.normal(size=60) + labels, 1)
    curve = metrics.roc_curve(labels, scores)
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    at = np.linspace(0, 1, 9973)[1:-1]
    np.testing.assert_allclose(np.interp(at, *curve), np.interp(at, fpr, tpr), atol=1e-9)


@pytest.mark.parametrize("limit", [0.2, 1.0])
def test_thin_curves_keep_the_shape(limit):
    masks, maps = random_maps(np.random.default_rng(6), num_images=120)
    curve = metrics.pro_curve(masks, maps, limit)
    full = metrics.pro_curve(masks, maps, limit, max_points=10**9)
    assert len(curve.fpr) <= 500 < len(full.fpr)
    assert curve.fpr[0] == 0
    assert curve.fpr[-1] == limit
    assert (np.diff(curve.fpr) >= 0).all()
    assert (np.diff(curve.height) >= 0).all()
    assert np.trapezoid(full.height, full.fpr) / limit == pytest.approx(
        metrics.aupro(masks, maps, limit), abs=1e-9
    )
    assert np.trapezoid(curve.height, curve.fpr) / limit == pytest.approx(
        metrics.aupro(masks, maps, limit), abs=1e-3
    )
    roc = metrics.pixel_roc_curve(masks, maps)
    assert np.trapezoid(roc.height, roc.fpr) == pytest.approx(
        metrics.pixel_metrics(masks, maps).auroc, abs=1e-3
    )


def test_per_type_is_the_type_against_all_normals():
    rng = np.random.default_rng(7)
    masks, maps = random_maps(rng, num_images=9)
    defects = ["good" if not mask.any() else ("cut", "hole")[i % 2] for i, mask in enumerate(masks)]
    scores = np.array([m.max() for m in maps])
    rows = metrics.per_type(defects, scores, masks, maps)
    assert [row.defect for row in rows] == ["cut", "hole"]
    for row in rows:
        kept = [i for i, defect in enumerate(defects) if defect in ("good", row.defect)]
        labels = np.array([defects[i] == row.defect for i in kept])
        assert row.num_images == labels.sum()
        assert row.image.auroc == pytest.approx(sk.roc_auc_score(labels, scores[kept]))
        pixels = np.concatenate([masks[i].ravel() for i in kept])
        values = np.concatenate([maps[i].ravel() for i in kept])
        assert row.pixel is not None
        assert row.pixel.auroc == pytest.approx(sk.roc_auc_score(pixels, values))
    assert all(row.pixel is None for row in metrics.per_type(defects, scores))


def test_standard_error_matches_the_spread_of_simulated_aurocs():
    rng = np.random.default_rng(8)
    labels = np.arange(60) < 40
    areas = [metrics.auroc(labels, rng.exponential(1 + 5 * labels)) for _ in range(2000)]
    expected = metrics.auroc_standard_error(float(np.mean(areas)), 40, 20)
    assert np.std(areas) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("value", "missing"), [(True, "normal"), (False, "anomalous")])
def test_one_label_says_which_is_missing(value, missing):
    with pytest.raises(UserError, match=f"no {missing} image"):
        metrics.auroc(np.full(4, value), np.arange(4.0))
    with pytest.raises(UserError, match=f"no {missing} pixel"):
        metrics.aupro([np.full((3, 3), value)], [np.ones((3, 3), np.float32)])


def test_wrong_input_raises():
    labels, mask = np.array([True, False]), np.eye(3, dtype=bool)
    for nan in ([np.nan, 1.0], [1.0, np.nan]):
        with pytest.raises(UserError, match="NaN"):
            metrics.auroc(labels, np.array(nan))
    with pytest.raises(UserError, match="NaN"):
        metrics.pixel_metrics([mask], [np.full((3, 3), np.nan)])
    with pytest.raises(UserError, match="shape"):
        metrics.auroc(labels, np.zeros(3))
    with pytest.raises(UserError, match="map 0"):
        metrics.aupro([mask], [np.zeros((3, 4))])
    with pytest.raises(UserError, match="one map per mask"):
        metrics.aupro([mask], [])
    with pytest.raises(UserError, match="must be bool"):
        metrics.aupro([mask.astype(np.uint8)], [np.zeros((3, 3))])  # pyright: ignore
    for limit in (0.0, 1.5):
        with pytest.raises(UserError, match="fpr_limit"):
            metrics.aupro([mask], [np.zeros((3, 3))], limit)


def test_metrics_leave_their_arguments_alone():
    masks, maps = random_maps(np.random.default_rng(9))
    before = [m.copy() for m in maps]
    metrics.pixel_metrics(masks, maps)
    assert all((a == b).all() for a, b in zip(before, maps, strict=True))

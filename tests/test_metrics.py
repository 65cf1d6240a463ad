import itertools
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as sk

from detect.evaluation import exact, metrics, pixels, ranking
from detect.scratch import Scratch
from synth.base.errors import UserError


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


def test_both_limits_of_aupro_are_reported():
    masks, maps = random_maps(np.random.default_rng(1))
    got = metrics.pixel_metrics(masks, maps)
    assert got.aupro == pytest.approx(brute_force_aupro(masks, maps, 0.3), abs=1e-9)
    assert got.aupro_005 == pytest.approx(brute_force_aupro(masks, maps, 0.05), abs=1e-9)


def test_aupro_by_hand():
    mask = np.array([[True, False, False, False, True, True]])
    scores = np.array([[0.9, 0.8, 0.7, 0.1, 0.75, 0.0]], np.float32)
    # regions {0.9} and {0.75, 0}; FPR 0..1/3: PRO 1/2; 1/3..2/3 and on: 3/4; the last 1/4 at FPR 1
    assert metrics.aupro([mask], [scores], 1.0) == pytest.approx((0.5 + 0.75 + 0.75) / 3)
    assert metrics.aupro([mask], [scores], 0.5) == pytest.approx((0.5 / 3 + 0.75 / 6) / 0.5)


def test_aupro_extremes():
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:5] = True
    perfect, constant = mask.astype(np.float32), np.ones((8, 8), np.float32)
    assert metrics.aupro([mask], [perfect], 0.3) == 1.0
    assert metrics.aupro([mask], [1 - perfect], 0.3) == 0.0
    assert metrics.aupro([mask], [constant], 0.3) == pytest.approx(0.15)
    assert metrics.aupro([mask], [constant], 1.0) == pytest.approx(0.5)


def best_f1(labels, scores):
    """The largest F1 over every threshold, by scikit-learn's curve."""
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    both = precision + recall
    return np.max(2 * precision * recall / np.where(both > 0, both, 1))


@pytest.mark.parametrize("levels", [None, 10, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_image_metrics_equal_scikit_learn(levels, dtype):
    rng = np.random.default_rng(2)
    labels = rng.random(301) < 0.3
    scores = (rng.normal(size=301) + labels).astype(dtype)
    if levels:
        scores = np.round(scores * levels) / levels
    got = metrics.image_metrics(labels, scores)
    assert got.auroc == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    expected = sk.average_precision_score(labels, scores)
    assert got.average_precision == pytest.approx(expected, abs=1e-12)
    assert got.f1_max == pytest.approx(best_f1(labels, scores), abs=1e-12)
    assert metrics.auroc(labels, scores) == got.auroc


@pytest.mark.parametrize("stretch", [2**22, 100, 7])
@pytest.mark.parametrize("levels", [None, 20, 2])
def test_pixel_metrics_equal_scikit_learn(monkeypatch, levels, stretch):
    """Whatever is read at once, down to stretches smaller than the ties."""
    monkeypatch.setattr(exact, "STRETCH_PIXELS", stretch)
    masks, maps = random_maps(np.random.default_rng(3), num_images=12, levels=levels)
    labels = np.concatenate([mask.ravel() for mask in masks])
    scores = np.concatenate([m.ravel() for m in maps])
    got = metrics.pixel_metrics(masks, maps)
    assert got.auroc == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-9)
    expected = sk.average_precision_score(labels, scores)
    assert got.average_precision == pytest.approx(expected, abs=1e-9)
    assert got.f1_max == pytest.approx(best_f1(labels, scores), abs=1e-9)
    assert got.aupro == pytest.approx(brute_force_aupro(masks, maps, 0.3), abs=1e-9)
    assert got.aupro_005 == pytest.approx(brute_force_aupro(masks, maps, 0.05), abs=1e-9)


def test_no_stretch_is_larger_than_it_may_be_of_however_many_pixels(monkeypatch):
    """As ten thousand maps of 1024 px are to 2,048 bins and 2^22 pixels; ties are counts alone."""
    monkeypatch.setattr(pixels, "NUM_BINS", 64)
    for module in (pixels, exact):
        monkeypatch.setattr(module, "STRETCH_PIXELS", 2**10)
    read, sizes = exact.read_stretch, []

    def watched(*args):
        stretch = read(*args)
        sizes.append(stretch.num_normal(("all",)) + stretch.num_anomalous(("all",)))
        return stretch

    monkeypatch.setattr(exact, "read_stretch", watched)
    rng = np.random.default_rng(5)
    masks = [np.pad(np.full((9, 9), n % 2 == 1), ((3, 52), (4, 51))) for n in range(16)]
    maps = [rng.normal(rng.normal(), 1, (64, 64)).astype(np.float32) + m for m in masks]
    for scores in maps:
        scores[:20] = scores[:20].clip(0.5)  # a frequent score
    got = metrics.pixel_metrics(masks, maps)
    assert max(sizes) <= 2**10
    assert 0.4 * 16 * 64**2 < sum(sizes) < 16 * 64**2
    assert len(sizes) < 2 * sum(sizes) / 2**10
    labels, scores = np.concatenate([m.ravel() for m in masks]), np.concatenate(maps).ravel()
    assert got.auroc == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-9)
    expected = sk.average_precision_score(labels, scores)
    assert got.average_precision == pytest.approx(expected, abs=1e-9)


def test_constant_scores_give_exactly_one_half():
    labels = np.arange(7) < 3
    assert metrics.auroc(labels, np.full(7, 0.1)) == 0.5
    assert metrics.image_metrics(labels, np.full(7, 0.1)) == pytest.approx((0.5, 3 / 7, 0.6))
    masks, maps = random_maps(np.random.default_rng(4))
    share = sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)
    got = metrics.pixel_metrics(masks, [np.full(m.shape, 7.5) for m in maps])
    assert got == pytest.approx((0.5, share, 2 * share / (1 + share), 0.15, 0.025))


def test_a_wrong_detector_is_not_flipped():
    labels = np.array([False, True, True])
    assert metrics.auroc(labels, np.array([0.9, 0.1, 0.2])) == 0.0


def test_metrics_depend_on_the_order_only():
    masks, maps = random_maps(np.random.default_rng(4))
    doubled = [8 * m for m in maps]  # exact in float32
    assert metrics.pixel_metrics(masks, doubled) == metrics.pixel_metrics(masks, maps)


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


def test_thin_curves_keep_the_shape():
    rng = np.random.default_rng(6)
    labels = rng.random(5000) < 0.3
    scores = rng.normal(size=5000) + labels
    full = metrics.roc_curve(labels, scores, max_points=10**9)
    curve = metrics.roc_curve(labels, scores)
    assert len(curve.fpr) <= 500 < len(full.fpr)
    assert (np.diff(curve.fpr) >= 0).all()
    assert (np.diff(curve.height) >= 0).all()
    area = metrics.auroc(labels, scores)
    assert np.trapezoid(full.height, full.fpr) == pytest.approx(area, abs=1e-9)
    assert np.trapezoid(curve.height, curve.fpr) == pytest.approx(area, abs=1e-3)
    part = ranking.cut(curve, 0.2)
    assert part.fpr[-1] == 0.2
    assert part.height[-1] == pytest.approx(np.interp(0.2, *full), abs=1e-2)


def test_the_same_pixels_in_other_images_have_the_same_roc():
    """AUROC, AP and F1-max pool all pixels; only AUPRO knows of regions."""
    masks, maps = random_maps(np.random.default_rng(7), num_images=3)
    joined = [np.concatenate([part.ravel() for part in parts])[None] for parts in (masks, maps)]
    one = metrics.pixel_metrics([joined[0]], [joined[1]])
    assert one[:3] == pytest.approx(metrics.pixel_metrics(masks, maps)[:3], abs=1e-12)


@pytest.mark.parametrize(("value", "missing"), [(True, "normal"), (False, "anomalous")])
def test_one_label_says_which_is_missing(value, missing):
    with pytest.raises(UserError, match=f"no {missing} image"):
        metrics.auroc(np.full(4, value), np.arange(4.0))
    with pytest.raises(UserError, match=f"no {missing} pixel"):
        metrics.pixel_metrics([np.full((3, 3), value)], [np.ones((3, 3), np.float32)])


def test_wrong_input_raises():
    labels, mask = np.array([True, False]), np.eye(3, dtype=bool)
    for odd in (np.nan, np.inf, -np.inf):
        for scores in ([odd, 1.0], [1.0, odd]):
            with pytest.raises(UserError, match="NaN" if np.isnan(odd) else "infinity"):
                metrics.auroc(labels, np.array(scores))
    with pytest.raises(UserError, match="NaN"):
        metrics.pixel_metrics([mask], [np.full((3, 3), np.nan)])
    with pytest.raises(UserError, match="shape"):
        metrics.auroc(labels, np.zeros(3))
    with pytest.raises(UserError, match="map 0"):
        metrics.pixel_metrics([mask], [np.zeros((3, 4))])
    with pytest.raises(UserError, match="one map per mask"):
        metrics.pixel_metrics([mask], [])
    with pytest.raises(UserError, match="must be bool"):
        metrics.pixel_metrics([mask.astype(np.uint8)], [np.zeros((3, 3))])
    for limit in (0.0, 1.5):
        with pytest.raises(UserError, match="fpr_limit"):
            metrics.aupro([mask], [np.zeros((3, 3))], limit)


def test_metrics_leave_their_arguments_alone():
    masks, maps = random_maps(np.random.default_rng(9))
    before = [m.copy() for m in maps]
    metrics.pixel_metrics(masks, maps)
    assert all((a == b).all() for a, b in zip(before, maps, strict=True))


def peak_memory(num_images, folder, side=128):
    """Bytes taken at most, but for the maps' making: in parking and binning, and in measuring."""
    rng = np.random.default_rng(0)
    tracemalloc.start()
    with Scratch(folder) as scratch:
        runs = pixels.PixelRuns(scratch)
        for number in range(num_images):
            mask = np.zeros((side, side), bool)
            mask[10:30, 10:30] = number % 2
            runs.add(rng.random((side, side), np.float32), mask if number % 2 else None, "all")
        binned = pixels.BinnedPixels(runs, scratch)
        before = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        exact.exact_sums(runs, binned, {"all": ("all",)}, (0.3,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return before, peak


def test_memory_does_not_hold_the_maps(monkeypatch, tmp_path):
    monkeypatch.setattr(exact, "STRETCH_PIXELS", 2**15)
    few, many = max(peak_memory(8, tmp_path)), max(peak_memory(72, tmp_path))
    assert many - few < 64 * 16_000, "64 more maps have 64 KiB of pixels each"


def test_memory_of_a_stretch_does_not_grow_with_stretches_times_images(monkeypatch, tmp_path):
    monkeypatch.setattr(exact, "STRETCH_PIXELS", 2**10)
    (_, few), (_, many) = peak_memory(20, tmp_path, 32), peak_memory(80, tmp_path, 32)
    assert many - few < 60 * 1_000, "80 bounds of 16 bytes would be more"

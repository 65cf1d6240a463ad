import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_metrics import random_maps

from detect.evaluation import bootstrap
from detect.evaluation.bootstrap import (
    binned_figures,
    difference,
    draw,
    image_samples,
    intervals,
    pixel_samples,
)
from detect.evaluation.metrics import ImageMetrics, PixelMetrics, image_metrics, pixel_metrics
from detect.evaluation.pixels import BinnedPixels, PixelRuns
from detect.scratch import Scratch


def test_draws_are_as_many_as_there_are_and_named_by_their_key():
    drawn = draw([3, 1, 4, 1, 5], key=1)
    assert drawn.counts.shape == (bootstrap.NUM_RESAMPLES, 5)
    assert (drawn.counts.sum(axis=1) == 5).all()
    assert drawn.counts.mean() == 1
    # binomial(5, 1/5): variance 0.8
    assert drawn.counts.astype(float).var() == pytest.approx(0.8, abs=0.05)
    np.testing.assert_array_equal(drawn.counts, draw([0, 1, 2, 3, 4], key=1).counts)
    assert (drawn.counts != draw([3, 1, 4, 1, 5], key=2).counts).any()
    assert (drawn.counts != draw([3, 1, 4, 1, 5], key=1, seed=1).counts).any()


def test_image_samples_are_the_metrics_of_the_images_drawn():
    rng = np.random.default_rng(0)
    labels = np.arange(30) >= 12
    scores = np.round(rng.normal(size=30) + labels, 1)  # with ties
    normal, anomalous = draw(range(12), 0), draw(range(12, 30), 1)
    samples = image_samples(normal, anomalous, scores)
    for row in (0, 1, 500, 999):
        chosen = np.repeat(np.arange(30), np.r_[normal.counts[row], anomalous.counts[row]])
        expected = image_metrics(labels[chosen], scores[chosen])
        assert tuple(samples[row]) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize("levels", [None, 20])
def test_pixel_samples_are_the_metrics_of_the_images_drawn(monkeypatch, levels):
    """The bins move a metric little, and a score that many pixels share not at all."""
    monkeypatch.setattr(bootstrap, "IMAGES_AT_ONCE", 4)
    masks, maps = random_maps(np.random.default_rng(3), num_images=12, levels=levels)
    with Scratch() as scratch:
        pixels = PixelRuns(scratch)
        for mask, scores in zip(masks, maps, strict=True):
            pixels.add(scores, mask if mask.any() else None, "cut" if mask.any() else "good")
        binned = BinnedPixels(pixels, scratch)
        good = [n for n, mask in enumerate(masks) if not mask.any()]
        bad = [n for n in range(12) if n not in good]
        normal, anomalous = draw(good, 0), draw(bad, 1)
        samples = pixel_samples(binned, normal, {"cut": anomalous})["cut"]
        rounded = binned_figures(binned.total())
    assert rounded == pytest.approx(tuple(pixel_metrics(masks, maps)), abs=1e-3)
    for row in (0, 124, 125, 999):
        times = dict(zip(good, normal.counts[row], strict=True))
        times |= dict(zip(bad, anomalous.counts[row], strict=True))
        chosen = [n for n in range(12) for _ in range(times[n])]
        expected = pixel_metrics([masks[n] for n in chosen], [maps[n] for n in chosen])
        assert tuple(samples[row]) == pytest.approx(tuple(expected), abs=2e-3)


def test_intervals_cover_what_they_promise():
    """Of 200 test sets of a known AUROC, about 95 % of the intervals hold it."""
    rng = np.random.default_rng(1)
    truth = roc_auc_score(
        np.arange(20000) >= 10000, rng.exponential(1 + np.r_[:20000] // 10000 * 2)
    )
    normal, anomalous = draw(range(40), 0), draw(range(40, 100), 1)
    held = []
    for _ in range(200):
        scores = rng.exponential(np.r_[np.ones(40), np.full(60, 3.0)])
        found = intervals(image_samples(normal, anomalous, scores), ImageMetrics._fields)["auroc"]
        held.append(found.low <= truth <= found.high)
    assert 0.89 <= np.mean(held) <= 0.99


def test_a_metric_that_never_moves_has_no_interval():
    scores = np.r_[np.zeros(5), np.ones(5)]  # perfect
    samples = image_samples(draw(range(5), 0), draw(range(5, 10), 1), scores)
    assert intervals(samples, ImageMetrics._fields) == {}
    assert difference(samples[:, 0], samples[:, 0]) is None
    assert intervals(np.empty((0, 5)), PixelMetrics._fields) == {}


def test_percentiles_by_hand():
    samples = np.arange(1001.0)[:, None]
    (found,) = intervals(samples, ["x"]).values()
    assert found == pytest.approx((25, 975))
    assert difference(samples[:, 0], np.zeros(1001)) == found

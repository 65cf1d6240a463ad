"""Confidence intervals: how far a metric moves with the choice of the test images.

NUM_RESAMPLES times the test images are drawn anew with replacement, the normal and the anomalous
ones apart, as many of each as there are; an interval goes from the 2.5 % to the 97.5 % percentile.
Image metrics of a resample are exact. Its pixel metrics are those of scores rounded into
`pixels.NUM_BINS` bins, since one sort of all pixels per resample would take minutes: an image drawn
w times adds its counts in the bins w times.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.
Shapes: R resamples, N images, K distinct scores or bins, F metrics.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detect.evaluation.exact import sums
from detect.evaluation.metrics import FPR_LIMIT, STRICT_FPR_LIMIT, Interval
from detect.evaluation.pixels import BinnedPixels, Bins
from detect.evaluation.ranking import Float64Array, FloatArray, Ranking, rank_bins
from synth.base.seeding import derive_seed

NUM_RESAMPLES = 1000
COVERAGE = 0.95
RESAMPLES_AT_ONCE, IMAGES_AT_ONCE = 125, 64  # bound the memory: neither changes a figure

Counts = npt.NDArray[np.uint16]
"""How often each image is drawn: [R, N]."""


class Resamples(NamedTuple):
    """Images, by index, and how often each is drawn: [R, len(indices)]."""

    indices: Sequence[int]
    counts: Counts


def draw(indices: Sequence[int], key: int, seed: int = 0) -> Resamples:
    """Draw as many images as there are, with replacement; `key` names the stratum."""
    num = len(indices)
    rng = np.random.default_rng(derive_seed(seed, key))
    counts = rng.multinomial(num, np.full(num, 1 / num), NUM_RESAMPLES)
    return Resamples(indices, counts.astype(np.uint16))


def image_samples(normal: Resamples, anomalous: Resamples, scores: FloatArray) -> Float64Array:
    """AUROC, AP and F1-max of every resample, exact: float64 [R, 3]. scores: float [N]."""
    indices = np.r_[list(normal.indices), list(anomalous.indices)]
    order = np.argsort(-scores[indices], kind="stable")
    falling = scores[indices][order]
    starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]])
    is_anomalous = (np.arange(len(indices)) >= len(normal.indices))[order]
    rows = []
    for part in _chunks(NUM_RESAMPLES, RESAMPLES_AT_ONCE):
        counts = np.hstack([normal.counts[part], anomalous.counts[part]])[:, order].astype(float)
        hits = np.add.reduceat(counts * is_anomalous, starts, axis=1)  # [r, K]
        others = np.add.reduceat(counts * ~is_anomalous, starts, axis=1)
        rows.append(_figures(rank_bins(others, hits, hits))[:, :3])
    return np.concatenate(rows)


def pixel_samples(
    binned: BinnedPixels, normal: Resamples, sets: Mapping[str, Resamples]
) -> dict[str, Float64Array]:
    """Pixel metrics of every resample of some sets of anomalous images, each with the normal ones.

    Indices are those of the runs. Returns float64 [R', 5] in the order of PixelMetrics; resamples
    without an anomalous pixel (drawn from empty masks only) are left out.
    """
    rows: dict[str, list[Float64Array]] = {name: [] for name in sets}
    for part in _chunks(NUM_RESAMPLES, RESAMPLES_AT_ONCE):
        background = _weighted(binned, normal, part)
        for name, drawn in sets.items():
            summed = _weighted(binned, drawn, part)
            falling = [(a + b)[:, ::-1] for a, b in zip(background, summed, strict=True)]
            filled = falling[1].any(axis=1)
            rows[name].append(_figures(rank_bins(*(counts[filled] for counts in falling))))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def binned_figures(bins: Bins) -> Float64Array:
    """Pixel metrics of scores rounded into bins, float64 [5]: to see what rounding changes."""
    return _figures(rank_bins(*(counts[None, ::-1] for counts in bins)))[0]


def intervals(samples: Float64Array, fields: Sequence[str]) -> dict[str, Interval]:
    """Percentile interval of each of F metrics; float64 [R, F].

    A metric that is the same in every resample has none: the images at hand do not tell how far it
    may move, and "1.000 to 1.000" would flatter.
    """
    if not len(samples):
        return {}
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0)
    moves = np.ptp(samples, axis=0) > 0
    return {
        field: Interval(float(low[i]), float(high[i])) for i, field in enumerate(fields) if moves[i]
    }


def difference(samples: Float64Array, others: Float64Array) -> Interval | None:
    """Interval of a metric's difference between two scorers on the same resamples: float64 [R]."""
    return intervals((samples - others)[:, None], ["difference"]).get("difference")


def _figures(ranking: Ranking) -> Float64Array:
    """[r, K] to [r, 5], in the order of PixelMetrics."""
    found = sums(ranking, (FPR_LIMIT, STRICT_FPR_LIMIT))
    return np.stack([found.auroc, found.average_precision, found.f1_max, *found.aupro], axis=-1)


def _weighted(binned: BinnedPixels, drawn: Resamples, resamples: slice) -> Bins:
    """Sum the images' counts as often as they are drawn: [r, K] each."""
    num = len(drawn.counts[resamples])
    total = np.zeros((3, num, len(binned.edges)))
    for part in _chunks(len(drawn.indices), IMAGES_AT_ONCE):
        times = drawn.counts[resamples, part].astype(np.float64)
        for held, counts in zip(total, binned.read(drawn.indices[part]), strict=True):
            if counts.any():
                held += times @ counts
    return Bins(*total)


def _chunks(num: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, num)) for start in range(0, num, size))

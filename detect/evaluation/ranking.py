"""The one exact ranking behind every metric: sort once, then each metric is a short sum.

A metric depends on the scores through their order alone: at each distinct anomalous score, how much
of the anomalous lies there and how many normals lie above it and at it. Sorting the many normals
(values only), sorting the few anomalous with their weights, and two binary searches give that.

A ranking may be one stretch of a longer one: AUROC, AP and AUPRO are sums over its steps and F1-max
is a maximum, so stretches are measured one after the other (exact.py).

Shapes: N items; K distinct anomalous scores, or bins of scores; P points of a curve. "..." stands
for leading axes, such as one per resample.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from synth.base.errors import UserError

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]


class Curve(NamedTuple):
    """A rising curve from (0, 0): float64 [P] each; straight lines join the points."""

    fpr: Float64Array
    height: Float64Array


class Totals(NamedTuple):
    """How much there is of each kind in the whole ranking; arrays are [..., 1]."""

    anomalous: Float64Array | float
    normal: Float64Array | float
    regions: Float64Array | float


class Ranking(NamedTuple):
    """What every metric needs, per distinct anomalous score, highest first; arrays are [..., K]."""

    hits: Float64Array  # anomalous items at this score
    found: Float64Array  # anomalous items with this score or a higher one
    overlap: Float64Array  # sum over the hits of 1 / (items of the hit's region)
    above: Float64Array  # normal items with a higher score
    reached: Float64Array  # normal items with this score or a higher one
    totals: Totals


# Rankings


def rank_items(labels: BoolArray, scores: FloatArray) -> Ranking:
    """Rank N whole items, each a region of its own.

    labels: bool [N], True is anomalous. Raises UserError for a missing label, scores that are not
    finite, and unequal lengths.
    """
    if labels.shape != scores.shape or labels.ndim != 1:
        raise UserError(
            f"scores: got shape {scores.shape} for labels of shape {labels.shape}; give one each"
        )
    require_finite_scores(scores, "image")
    is_anomalous = labels.astype(bool)
    anomalous, normal = scores[is_anomalous], np.sort(scores[~is_anomalous])
    require_both(len(anomalous), len(normal), "image")
    totals = Totals(len(anomalous), len(normal), len(anomalous))
    return rank([normal], anomalous, np.ones(len(anomalous)), totals)


def rank(
    normals: Sequence[FloatArray],
    anomalous: FloatArray,
    overlap: Float64Array,
    totals: Totals,
    *,
    found_before: float = 0,
    above_before: float = 0,
) -> Ranking:
    """Rank anomalous items, in any order, among normal ones: several lists, each ascending.

    overlap: 1 / (items of its region) per anomalous item. found_before and above_before: anomalous
    and normal items of earlier stretches, all with higher scores.
    """
    order = np.argsort(anomalous)
    anomalous = anomalous[order]
    starts = np.flatnonzero(np.r_[True, anomalous[1:] != anomalous[:-1]][: len(anomalous)])
    values = anomalous[starts]  # [K]: ties become one step
    hits = np.diff(starts, append=len(anomalous))[::-1].astype(np.float64)
    return Ranking(
        hits=hits,
        found=found_before + np.cumsum(hits),
        overlap=(np.add.reduceat(overlap[order], starts) if len(starts) else np.empty(0))[::-1],
        above=above_before + _num_higher(normals, values, "right"),
        reached=above_before + _num_higher(normals, values, "left"),
        totals=totals,
    )


def _num_higher(
    normals: Sequence[FloatArray], values: FloatArray, side: Literal["left", "right"]
) -> Float64Array:
    """Normal items above each value ("right"), or at and above it ("left"), highest value first."""
    higher = np.zeros(len(values))
    for ascending in normals:
        higher += len(ascending) - np.searchsorted(ascending, values, side)
    return higher[::-1]


def rank_bins(normal: Float64Array, hits: Float64Array, overlap: Float64Array) -> Ranking:
    """Rank by bins of scores, the highest bin first; items of a bin count as ties.

    All float64 [..., K]: normal items, anomalous items and their summed overlap in each bin.
    """
    reached, found = normal.cumsum(-1), hits.cumsum(-1)
    totals = Totals(found[..., -1:], reached[..., -1:], overlap.sum(-1, keepdims=True))
    return Ranking(hits, found, overlap, reached - normal, reached, totals)


def require_finite_scores(scores: FloatArray, item: str) -> None:
    """Raise UserError for NaN and infinite scores: they have no place in an order."""
    if not np.isfinite(scores).all():
        kind = "NaN" if np.isnan(scores).any() else "infinity"
        raise UserError(f"scores: got {kind} for some {item}, numbers are needed; check the model")


def require_both(num_anomalous: float, num_normal: float, item: str) -> None:
    """Raise UserError where a label has no item."""
    if not num_anomalous or not num_normal:
        missing = "anomalous" if num_normal else "normal"
        raise UserError(
            f"labels: got no {missing} {item}, both kinds are needed; add {missing} test images"
        )


# Areas and extremes: [..., K] to [...]


def roc_area(ranking: Ranking) -> Float64Array:
    """Area under the ROC curve; a tie of an anomalous and a normal item counts one half."""
    return _area(ranking, ranking.hits / ranking.totals.anomalous, 1.0)


def pro_area(ranking: Ranking, fpr_limit: float) -> Float64Array:
    """Area under the per-region-overlap curve up to fpr_limit, divided by it."""
    return _area(ranking, ranking.overlap / ranking.totals.regions, fpr_limit)


def _area(ranking: Ranking, weight: Float64Array, fpr_limit: float) -> Float64Array:
    """Integral of the curve over [0, fpr_limit], divided by fpr_limit.

    The step at one score rises by its weight along a straight line from FPR a to FPR b (a = b
    without ties) and keeps that height to the limit: it adds weight * (limit - (a + b) / 2), or,
    when the limit cuts the line, the triangle weight * (limit - a)^2 / (2 (b - a)).
    """
    a, b = ranking.above / ranking.totals.normal, ranking.reached / ranking.totals.normal
    cut = (a < fpr_limit) & (b > fpr_limit)
    width = np.where(b <= fpr_limit, fpr_limit - (a + b) / 2, 0.0)
    np.divide((fpr_limit - a) ** 2, 2 * (b - a), out=width, where=cut)
    return (weight * width).sum(-1) / fpr_limit


def mean_precision(ranking: Ranking) -> Float64Array:
    """Average precision: precision at each distinct score, weighted by its gain in recall."""
    called = np.maximum(ranking.found + ranking.reached, 1)  # 0 only where there are no hits
    return (ranking.hits / ranking.totals.anomalous * ranking.found / called).sum(-1)


def best_f1(ranking: Ranking) -> Float64Array:
    """Largest F1 = 2 TP / (TP + FP + anomalous) over all thresholds; 0 for no step.

    A best threshold is at an anomalous score: lower ones only add false positives.
    """
    called = ranking.found + ranking.reached
    return (2 * ranking.found / (called + ranking.totals.anomalous)).max(-1, initial=0.0)


# Curves


def roc_vertices(ranking: Ranking) -> Curve:
    """List every corner of a whole ranking's ROC curve, from (0, 0) to (1, 1)."""
    return _vertices(ranking, ranking.hits / ranking.totals.anomalous)


def pro_vertices(ranking: Ranking) -> Curve:
    """List every corner of a whole ranking's PRO curve, from (0, 0) to (1, 1)."""
    return _vertices(ranking, ranking.overlap / ranking.totals.regions)


def _vertices(ranking: Ranking, weight: Float64Array) -> Curve:
    """Each step's two ends: [K] to [2 K + 2]."""
    ends = np.stack([ranking.above, ranking.reached], axis=1) / ranking.totals.normal  # [K, 2]
    after = np.cumsum(weight)
    heights = np.stack([after - weight, after], axis=1)  # [K, 2]
    heights = np.clip(heights.ravel(), 0.0, 1.0)
    return Curve(np.r_[0.0, ends.ravel(), 1.0], np.r_[0.0, heights, 1.0])


def cut(curve: Curve, fpr_limit: float) -> Curve:
    """Keep the curve up to fpr_limit, ending with a point on the line there."""
    kept = int(np.searchsorted(curve.fpr, fpr_limit, side="right"))
    if kept == len(curve.fpr):
        return curve
    (x_0, x_1), (y_0, y_1) = curve.fpr[kept - 1 : kept + 1], curve.height[kept - 1 : kept + 1]
    end = y_0 + (y_1 - y_0) * (fpr_limit - x_0) / (x_1 - x_0)
    return Curve(np.r_[curve.fpr[:kept], fpr_limit], np.r_[curve.height[:kept], end])


def thin(curve: Curve, max_points: int = 500) -> Curve:
    """Keep the corners on both sides of evenly spaced marks along the curve, max_points at most."""
    if len(curve.fpr) <= max_points:
        return curve
    way = curve.fpr / curve.fpr[-1] + curve.height
    marks = np.linspace(0, way[-1], max_points // 2)
    after = np.searchsorted(way, marks).clip(1, len(way) - 1)
    kept = np.unique(np.r_[after - 1, after])
    return Curve(curve.fpr[kept], curve.height[kept])

"""The one exact ranking behind every metric: sort once, then each metric is a short sum.

A metric depends on the scores through their order alone: at each distinct anomalous score, how much
of the anomalous lies there and how many normals lie above it and at it. Sorting the many normals
(values only), sorting the few anomalous with their weights, and two binary searches give that.

Shapes: N items, H, W pixels of an image (images may differ in size), K distinct anomalous scores,
P points of a curve.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from synth.errors import UserError

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.intp]


class Curve(NamedTuple):
    """A rising curve from (0, 0): float64 [P] each; straight lines join the points."""

    fpr: npt.NDArray[np.float64]
    height: npt.NDArray[np.float64]


class Ranking(NamedTuple):
    """What every metric needs, per distinct anomalous score, highest first; arrays are [K]."""

    hits: IntArray  # anomalous items at this score
    weight: npt.NDArray[np.float64]  # their share of the mean region overlap; sums to 1
    above: IntArray  # normal items with a higher score
    reached: IntArray  # normal items with this score or a higher one
    num_normal: int

    def pooled(self) -> "Ranking":
        """Every item weighs the same, whatever its region: for ROC curves."""
        return self._replace(weight=self.hits / self.hits.sum())


# Rankings


def rank_items(labels: BoolArray, scores: FloatArray) -> Ranking:
    """Rank N whole items; labels: bool [N], True is anomalous; UserError as `metrics.auroc`."""
    if labels.shape != scores.shape or labels.ndim != 1:
        raise UserError(
            f"scores: got shape {scores.shape} for labels of shape {labels.shape}; give one each"
        )
    is_anomalous = labels.astype(bool)
    anomalous = scores[is_anomalous]
    return _rank(scores[~is_anomalous], anomalous, np.ones(len(anomalous)), "image")


def rank_pixels(masks: Sequence[BoolArray], maps: Sequence[FloatArray]) -> Ranking:
    """Rank all pixels of maps float [H, W]; each region weighs the same in `weight`.

    Errors as `metrics.pixel_metrics`.
    """
    if len(masks) != len(maps):
        raise UserError(f"maps: got {len(maps)} for {len(masks)} masks; give one map per mask")
    normal: list[FloatArray] = [np.empty(0, np.float32)]
    anomalous: list[FloatArray] = [np.empty(0, np.float32)]
    shares: list[npt.NDArray[np.float64]] = [np.empty(0)]
    for index, (mask, scores) in enumerate(zip(masks, maps, strict=True)):
        if mask.dtype != np.bool_:
            raise UserError(f"mask {index}: got {mask.dtype}, must be bool; pass mask > 0")
        if mask.shape != scores.shape:
            raise UserError(
                f"map {index}: got shape {scores.shape}, its mask has {mask.shape}; resize one"
            )
        if not mask.any():
            normal.append(scores.ravel())
            continue
        normal.append(scores[~mask])
        anomalous.append(scores[mask])
        shares.append(_region_shares(mask))
    return _rank(np.concatenate(normal), np.concatenate(anomalous), np.concatenate(shares), "pixel")


def _region_shares(mask: BoolArray) -> npt.NDArray[np.float64]:
    """1 / (pixels of its region) per True pixel, in row order; sums to the number of regions."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    inside: npt.NDArray[np.int32] = np.asarray(labels, np.int32)[mask]
    return 1.0 / np.bincount(inside)[inside]


def _rank(
    normal: FloatArray, anomalous: FloatArray, shares: npt.NDArray[np.float64], item: str
) -> Ranking:
    if not len(normal) or not len(anomalous):
        missing = "normal" if not len(normal) else "anomalous"
        raise UserError(
            f"labels: got no {missing} {item}, both kinds are needed; add {missing} test images"
        )
    normal = np.sort(normal)
    order = np.argsort(anomalous)
    anomalous = anomalous[order]
    if np.isnan(normal[-1]) or np.isnan(anomalous[-1]):  # NaN sorts last
        raise UserError(f"scores: got NaN for some {item}, numbers are needed; check the model")

    starts = np.flatnonzero(np.r_[True, anomalous[1:] != anomalous[:-1]])  # ties become one step
    values = anomalous[starts]  # [K]
    return Ranking(
        hits=np.diff(starts, append=len(anomalous))[::-1],
        weight=np.add.reduceat(shares[order], starts)[::-1] / shares.sum(),
        above=(len(normal) - np.searchsorted(normal, values, side="right"))[::-1],
        reached=(len(normal) - np.searchsorted(normal, values, side="left"))[::-1],
        num_normal=len(normal),
    )


# Areas and curves of a ranking


def area(ranking: Ranking, fpr_limit: float) -> float:
    """Integral of the curve over [0, fpr_limit], divided by fpr_limit.

    The step at one score rises by its weight along a straight line from FPR a to FPR b (a = b
    without ties) and keeps that height to the limit: it adds weight * (limit - (a + b) / 2), or,
    when the limit cuts the line, the triangle weight * (limit - a)^2 / (2 (b - a)).
    """
    a, b = ranking.above / ranking.num_normal, ranking.reached / ranking.num_normal
    cut = (a < fpr_limit) & (b > fpr_limit)
    width = np.where(b <= fpr_limit, fpr_limit - (a + b) / 2, 0.0)
    width[cut] = (fpr_limit - a[cut]) ** 2 / (2 * (b[cut] - a[cut]))
    return float(ranking.weight @ width) / fpr_limit


def mean_precision(ranking: Ranking) -> float:
    """Average precision: precision at each distinct score, weighted by its gain in recall."""
    true = np.cumsum(ranking.hits)
    return float((ranking.hits / ranking.hits.sum()) @ (true / (true + ranking.reached)))


def vertices(ranking: Ranking) -> Curve:
    """List every corner of the exact curve: each step's two ends, from (0, 0) to (1, 1)."""
    ends = np.stack([ranking.above, ranking.reached], axis=1) / ranking.num_normal  # [K, 2]
    after = np.cumsum(ranking.weight)
    heights = np.stack([after - ranking.weight, after], axis=1)  # [K, 2]
    return Curve(np.r_[0.0, ends.ravel(), 1.0], np.r_[0.0, np.minimum(heights.ravel(), 1.0), 1.0])


def cut(curve: Curve, fpr_limit: float) -> Curve:
    """Keep the curve up to fpr_limit, ending with a point on the line there."""
    kept = int(np.searchsorted(curve.fpr, fpr_limit, side="right"))
    if kept == len(curve.fpr):
        return curve
    (x_0, x_1), (y_0, y_1) = curve.fpr[kept - 1 : kept + 1], curve.height[kept - 1 : kept + 1]
    end = y_0 + (y_1 - y_0) * (fpr_limit - x_0) / (x_1 - x_0)
    return Curve(np.r_[curve.fpr[:kept], fpr_limit], np.r_[curve.height[:kept], end])


def thin(curve: Curve, max_points: int) -> Curve:
    """Keep the corners on both sides of evenly spaced marks along the curve, max_points at most."""
    if len(curve.fpr) <= max_points:
        return curve
    way = curve.fpr / curve.fpr[-1] + curve.height
    marks = np.linspace(0, way[-1], max_points // 2)
    after = np.searchsorted(way, marks).clip(1, len(way) - 1)
    kept = np.unique(np.r_[after - 1, after])
    return Curve(curve.fpr[kept], curve.height[kept])

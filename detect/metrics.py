"""Image and pixel metrics: AUROC, average precision (AP), AUPRO and their curves, all exact.

Nothing is flipped, rescaled or approximated; ties and limits are stated where they matter. Pixel
AUROC, pixel AP and AUPRO share one sort (detect/ranking.py). Shapes: N images of H, W pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detect.ranking import (
    BoolArray,
    Curve,
    FloatArray,
    area,
    cut,
    mean_precision,
    rank_items,
    rank_pixels,
    thin,
    vertices,
)
from synth.errors import UserError


class ImageMetrics(NamedTuple):
    """Whole-image metrics, each in [0, 1]."""

    auroc: float
    average_precision: float


class PixelMetrics(NamedTuple):
    """Pixel metrics over a set of maps, each in [0, 1]; `aupro` is up to `fpr_limit`."""

    auroc: float
    average_precision: float
    aupro: float
    fpr_limit: float


class TypeMetrics(NamedTuple):
    """The metrics of one defect type; `pixel` is None where no masks were given."""

    defect: str
    num_images: int
    image: ImageMetrics
    pixel: PixelMetrics | None


# Whole images


def auroc(labels: BoolArray, scores: FloatArray) -> float:
    """Area under the ROC curve: the chance that an anomalous item scores above a normal one.

    A tie counts one half (midranks), so constant scores give exactly 0.5. An area below 0.5 stays.

    labels: bool [N], True is anomalous; scores: float [N], higher is more anomalous.
    Raises UserError for a missing label, NaN scores or unequal lengths.
    """
    return area(rank_items(labels, scores), fpr_limit=1.0)


def average_precision(labels: BoolArray, scores: FloatArray) -> float:
    """Average precision AP = sum_j (R_j - R_{j-1}) P_j over the distinct scores, highest first.

    P_j and R_j are precision and recall at "score >= j-th distinct score"; no interpolation.
    Arguments and errors as for `auroc`.
    """
    return mean_precision(rank_items(labels, scores))


def image_metrics(labels: BoolArray, scores: FloatArray) -> ImageMetrics:
    """AUROC and AP of image scores; arguments and errors as for `auroc`."""
    ranking = rank_items(labels, scores)
    return ImageMetrics(area(ranking, fpr_limit=1.0), mean_precision(ranking))


def roc_curve(labels: BoolArray, scores: FloatArray, max_points: int = 500) -> Curve:
    """Trace the ROC curve (false, true positive rate), thinned for plotting to max_points at most.

    Arguments and errors as for `auroc`. The area is `auroc`'s to about 1 / max_points.
    """
    return thin(vertices(rank_items(labels, scores)), max_points)


def auroc_standard_error(value: float, num_anomalous: int, num_normal: int) -> float:
    """Estimate the standard error of an AUROC from the sample sizes, to tell a gain from noise.

    Source: Hanley and McNeil, 1982, Eq. 1 and 2 (exponential approximation of Q_1 and Q_2).
    """
    q_1, q_2 = value / (2 - value), 2 * value**2 / (1 + value)
    spread = (num_anomalous - 1) * (q_1 - value**2) + (num_normal - 1) * (q_2 - value**2)
    return float(np.sqrt((value * (1 - value) + spread) / (num_anomalous * num_normal)))


# Pixels


def pixel_metrics(
    masks: Sequence[BoolArray], maps: Sequence[FloatArray], fpr_limit: float = 0.3
) -> PixelMetrics:
    """Pixel AUROC, pixel AP and AUPRO from one sort, each defined at its own function.

    masks: bool [H, W] per image, all False for a normal one; maps: float [H, W] per image.
    Raises UserError when there is no anomalous or no normal pixel, for NaN and for unequal shapes.
    """
    _check_limit(fpr_limit)
    ranking = rank_pixels(masks, maps)
    return PixelMetrics(
        area(ranking.pooled(), 1.0), mean_precision(ranking), area(ranking, fpr_limit), fpr_limit
    )


def aupro(masks: Sequence[BoolArray], maps: Sequence[FloatArray], fpr_limit: float = 0.3) -> float:
    """Area under the per-region-overlap curve up to FPR = fpr_limit, divided by fpr_limit; exact.

    At each distinct score t of any pixel: PRO = mean over all regions of the share of the region
    with score >= t; FPR = share of all normal pixels with score >= t. Regions are the 8-connected
    pieces of the masks. The curve starts at (0, 0); straight lines (trapezoids) join consecutive
    distinct scores, also across the limit. A constant map gives fpr_limit / 2.

    Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.
    Arguments and errors as for `pixel_metrics`; fpr_limit in (0, 1].
    """
    _check_limit(fpr_limit)
    return area(rank_pixels(masks, maps), fpr_limit)


def pixel_roc_curve(
    masks: Sequence[BoolArray], maps: Sequence[FloatArray], max_points: int = 500
) -> Curve:
    """Trace the ROC curve over all pixels, thinned; arguments as for `pixel_metrics`."""
    ranking = rank_pixels(masks, maps)
    return thin(vertices(ranking.pooled()), max_points)


def pro_curve(
    masks: Sequence[BoolArray],
    maps: Sequence[FloatArray],
    fpr_limit: float = 0.3,
    max_points: int = 500,
) -> Curve:
    """Trace the PRO curve that `aupro` integrates, cut at fpr_limit, thinned."""
    _check_limit(fpr_limit)
    return thin(cut(vertices(rank_pixels(masks, maps)), fpr_limit), max_points)


# Defect types


def per_type(
    defects: Sequence[str],
    scores: FloatArray,
    masks: Sequence[BoolArray] | None = None,
    maps: Sequence[FloatArray] | None = None,
    *,
    fpr_limit: float = 0.3,
    normal: str = "good",
) -> tuple[TypeMetrics, ...]:
    """Measure each defect type against ALL normal test images, in order of the types' names.

    Image metrics compare the type's images with every normal image; pixel metrics (when masks and
    maps are given) are over the type's images and every normal image together.

    defects: each image's type, `normal` for a normal image; scores: float [N].
    """
    types = np.asarray(defects)
    rows: list[TypeMetrics] = []
    for defect in sorted(set(defects) - {normal}):
        chosen = np.flatnonzero((types == defect) | (types == normal))
        pixel = None
        if masks is not None and maps is not None:
            picked = [int(i) for i in chosen]
            pixel = pixel_metrics([masks[i] for i in picked], [maps[i] for i in picked], fpr_limit)
        image = image_metrics(types[chosen] == defect, scores[chosen])
        rows.append(TypeMetrics(defect, int((types == defect).sum()), image, pixel))
    return tuple(rows)


def _check_limit(fpr_limit: float) -> None:
    if not 0 < fpr_limit <= 1:
        raise UserError(f"fpr_limit: got {fpr_limit}, allowed is above 0 up to 1; 0.3 is usual")

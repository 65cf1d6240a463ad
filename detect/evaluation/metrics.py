"""Image and pixel metrics: AUROC, average precision (AP), F1-max and AUPRO, all exact.

Nothing is flipped, rescaled or approximated; ties and limits are stated where they matter. A label
without an item and scores that are not finite are errors; constant scores have the value that the
definition gives. Shapes: N images of H, W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from detect.evaluation.exact import Sums, exact_sums, set_totals
from detect.evaluation.pixels import BinnedPixels, PixelRuns
from detect.evaluation.ranking import (
    BoolArray,
    Curve,
    Float64Array,
    FloatArray,
    Ranking,
    best_f1,
    mean_precision,
    rank_items,
    require_both,
    roc_area,
    roc_vertices,
    thin,
)
from detect.scratch import Scratch
from synth.base.errors import UserError

FPR_LIMIT = 0.3  # of AUPRO where nothing else is said
STRICT_FPR_LIMIT = 0.05  # of AUPRO where false positives are dear


class ImageMetrics(NamedTuple):
    """Whole-image metrics, each in [0, 1]."""

    auroc: float
    average_precision: float
    f1_max: float


class PixelMetrics(NamedTuple):
    """Pixel metrics over a set of maps, each in [0, 1].

    `aupro` is up to FPR_LIMIT, `aupro_005` up to STRICT_FPR_LIMIT.
    """

    auroc: float
    average_precision: float
    f1_max: float
    aupro: float
    aupro_005: float

    @staticmethod
    def of(sums: Sums) -> "PixelMetrics":
        """Read sums over the two limits, in this order."""
        pooled = sums.auroc, sums.average_precision, sums.f1_max
        return PixelMetrics(*(_exact(value) for value in (*pooled, *sums.aupro)))


def _exact(value: Float64Array) -> float:
    """Round off what float64 sums leave behind a perfect 1."""
    return round(float(value), 12)


class Interval(NamedTuple):
    """A 95 % confidence interval over the choice of the test images (bootstrap.py)."""

    low: float
    high: float


Intervals = Mapping[str, Interval]
"""By a metric's field; a metric without an interval is absent."""


class Figures(NamedTuple):
    """Metrics of a set of anomalous images with all normal test images, and their intervals.

    `pixel` is None without masks, or where all masks of the set are empty.
    """

    image: ImageMetrics
    pixel: PixelMetrics | None
    image_intervals: Intervals
    pixel_intervals: Intervals


class TypeMetrics(NamedTuple):
    """The figures of one defect type."""

    defect: str
    num_images: int
    figures: Figures


class Curves(NamedTuple):
    """What a report draws, thinned to 500 points that lie on the exact curves."""

    image_roc: Curve
    pixel_roc: Curve | None = None
    pro: Curve | None = None  # up to FPR_LIMIT


# Whole images


def auroc(labels: BoolArray, scores: FloatArray) -> float:
    """Area under the ROC curve: the chance that an anomalous item scores above a normal one.

    A tie counts one half (midranks), so constant scores give exactly 0.5. An area below 0.5 stays.

    labels: bool [N], True is anomalous; scores: float [N], higher is more anomalous.
    Raises UserError for a missing label, scores that are not finite, and unequal lengths.
    """
    return _exact(roc_area(rank_items(labels, scores)))


def image_metrics(labels: BoolArray, scores: FloatArray) -> ImageMetrics:
    """AUROC, AP and F1-max of image scores; arguments and errors as for `auroc`.

    AP = sum_j (R_j - R_{j-1}) P_j over the distinct scores, highest first, where P_j and R_j are
    precision and recall at "score >= j-th distinct score"; no interpolation. F1-max is the largest
    2 P_j R_j / (P_j + R_j): its threshold is the best one in hindsight, so that it bounds what any
    threshold reaches. Constant scores give 0.5, the share p of anomalous images, and 2 p / (1 + p).
    """
    return ranked_metrics(rank_items(labels, scores))


def ranked_metrics(ranking: Ranking) -> ImageMetrics:
    """AUROC, AP and F1-max of a ranking."""
    figures = roc_area(ranking), mean_precision(ranking), best_f1(ranking)
    return ImageMetrics(*map(_exact, figures))


def roc_curve(labels: BoolArray, scores: FloatArray, max_points: int = 500) -> Curve:
    """Trace the ROC curve (false, true positive rate), thinned for plotting to max_points at most.

    Arguments and errors as for `auroc`. The area is `auroc`'s to about 1 / max_points.
    """
    return thin(roc_vertices(rank_items(labels, scores)), max_points)


# Pixels of maps in memory; measure.py streams them from disk


def pixel_metrics(masks: Sequence[BoolArray], maps: Sequence[FloatArray]) -> PixelMetrics:
    """Pixel AUROC, AP, F1-max (as for images, over all pixels together) and AUPRO at both limits.

    masks: bool [H, W] per image, all False for a normal one; maps: float [H, W] per image, compared
    as float32. Raises UserError when there is no anomalous or no normal pixel, for scores that are
    not finite and for unequal shapes.
    """
    return PixelMetrics.of(_sums_in_memory(masks, maps, (FPR_LIMIT, STRICT_FPR_LIMIT)))


def aupro(masks: Sequence[BoolArray], maps: Sequence[FloatArray], fpr_limit: float) -> float:
    """Area under the per-region-overlap curve up to FPR = fpr_limit, divided by fpr_limit; exact.

    At each distinct score t of any pixel: PRO = mean over all regions of the share of the region
    with score >= t; FPR = share of all normal pixels with score >= t. Regions are the 8-connected
    pieces of the masks. The curve starts at (0, 0); straight lines (trapezoids) join consecutive
    distinct scores, also across the limit. A constant map gives fpr_limit / 2.

    Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.
    Arguments and errors as for `pixel_metrics`; fpr_limit in (0, 1].
    """
    if not 0 < fpr_limit <= 1:
        raise UserError(f"fpr_limit: got {fpr_limit}, allowed is above 0 up to 1; 0.3 is usual")
    return _exact(_sums_in_memory(masks, maps, (fpr_limit,)).aupro[0])


def _sums_in_memory(
    masks: Sequence[BoolArray], maps: Sequence[FloatArray], fpr_limits: Sequence[float]
) -> Sums:
    if len(masks) != len(maps):
        raise UserError(f"maps: got {len(maps)} for {len(masks)} masks; give one map per mask")
    with Scratch() as scratch:
        pixels = PixelRuns(scratch)
        for mask, scores in zip(masks, maps, strict=True):
            pixels.add(scores, mask, "all")
        totals = set_totals(pixels, ("all",))
        require_both(float(totals.anomalous), float(totals.normal), "pixel")
        binned = BinnedPixels(pixels, scratch)
        return exact_sums(pixels, binned, {"all": ("all",)}, fpr_limits)["all"]

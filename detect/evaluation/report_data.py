"""What an evaluation's report shows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detect.calibration import Calibration
from detect.evaluation.best import Best
from detect.evaluation.metrics import (
    Curves,
    Figures,
    ImageMetrics,
    Interval,
    PixelMetrics,
    TypeMetrics,
)
from detect.evaluation.seeds import Seeds
from detect.heatmap import HeatRange, Image


@dataclass(frozen=True, kw_only=True)
class Example:
    """One test image to show.

    image: uint8 [H, W, 3], RGB; anomaly_map: float [H, W]; mask: bool [H, W], None when unknown.
    defect: the type, which is the report's `normal` for a normal image; score: the image score.
    """

    name: str
    defect: str
    score: float
    image: Image
    anomaly_map: npt.NDArray[np.floating]
    mask: npt.NDArray[np.bool_] | None = None


class Comparison(NamedTuple):
    """A row of a table: a method or baseline on the test images.

    pixel: None without anomaly maps. auroc_gain, aupro_gain: interval of the difference, reported
    method minus this one; None where all resamples give the same.
    """

    name: str
    image: ImageMetrics
    pixel: PixelMetrics | None = None
    auroc_gain: Interval | None = None
    aupro_gain: Interval | None = None


COLUMNS: dict[str, Callable[[Comparison], float | None]] = {
    "image AUROC": lambda row: row.image.auroc,
    "AP": lambda row: row.image.average_precision,
    "F1-max": lambda row: row.image.f1_max,
    "pixel AUROC": lambda row: row.pixel and row.pixel.auroc,
    "pixel AP": lambda row: row.pixel and row.pixel.average_precision,
    "pixel F1-max": lambda row: row.pixel and row.pixel.f1_max,
    "AUPRO": lambda row: row.pixel and row.pixel.aupro,
    "AUPRO 0.05": lambda row: row.pixel and row.pixel.aupro_005,
}
"""Columns of a table, and how to read them from a row."""


class Picks(NamedTuple):
    """Indices of test images worth looking at, the worst (or best) first."""

    misses: tuple[int, ...]  # defects that score lowest
    false_alarms: tuple[int, ...]  # normals that score highest
    detections: tuple[int, ...]  # defects that score highest


class Caught(NamedTuple):
    """How many images of a kind lie above the threshold."""

    rejected: int
    total: int

    @property
    def share(self) -> float:
        """The share of images that is rejected."""
        return self.rejected / self.total


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that report.html shows of one evaluation.

    defects: each test image's type (`normal` for a good one); scores: float [N], the image scores.
    rounding: see `Evaluation`. heat: the colour scale of all maps, see `heatmap.heat_range`.
    protocol: facts in the order to show them, such as seed, image size, backbone, counts, date.
    notes: what is odd about the test images. seeds: the averages over several trainings; everything
    else describes the first. best_on_test: what `--watch-test` found, if it was given.
    """

    title: str
    dataset: str
    category: str
    method: str
    defects: tuple[str, ...]
    scores: npt.NDArray[np.floating]
    calibration: Calibration
    figures: Figures
    curves: Curves
    heat: HeatRange
    rounding: float = 0.0
    per_type: tuple[TypeMetrics, ...] = ()
    seeds: Seeds | None = None
    best_on_test: Best | None = None
    comparisons: tuple[Comparison, ...] = ()
    misses: tuple[Example, ...] = ()
    false_alarms: tuple[Example, ...] = ()
    detections: tuple[Example, ...] = ()
    protocol: Mapping[str, str]
    notes: tuple[str, ...] = ()
    normal: str = "good"

    @property
    def image(self) -> ImageMetrics:
        """Image metrics of all defect types together."""
        return self.figures.image

    @property
    def pixel(self) -> PixelMetrics | None:
        """Pixel metrics of all defect types together."""
        return self.figures.pixel

    def caught(self, defect: str) -> Caught:
        """How many images of this type (or of `normal`) the threshold rejects."""
        return self._count(np.asarray(self.defects) == defect)

    @property
    def caught_defects(self) -> Caught:
        """How many defective images, of all types, the threshold rejects."""
        return self._count(np.asarray(self.defects) != self.normal)

    def _count(self, chosen: npt.NDArray[np.bool_]) -> Caught:
        rejected = [self.calibration.rejects(float(score)) for score in self.scores[chosen]]
        return Caught(sum(rejected), len(rejected))


def pick_examples(
    labels: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating], count: int = 6
) -> Picks:
    """Choose up to `count` images of each kind to show; none is both a miss and a detection.

    labels: bool [N], True is anomalous; scores: float [N].
    """
    order = [int(i) for i in np.argsort(scores, kind="stable")]
    rising = [i for i in order if labels[i]]
    normals = [i for i in reversed(order) if not labels[i]]
    misses = rising[:count]
    detections = rising[len(misses) :][::-1][:count]
    return Picks(tuple(misses), tuple(normals[:count]), tuple(detections))

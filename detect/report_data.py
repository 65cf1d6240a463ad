"""What a report is made of, typed: the caller measures, the report only shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detect.calibration import Calibration
from detect.heatmap import HeatRange, Image
from detect.metrics import Curve, ImageMetrics, PixelMetrics, TypeMetrics


@dataclass(frozen=True, kw_only=True)
class Example:
    """One test image to show.

    image: uint8 [H, W, 3], RGB; anomaly_map: float [H, W]; mask: bool [H, W], None when unknown.
    defect: its type, `normal` of the report for a normal image; score: its image score.
    """

    name: str
    defect: str
    score: float
    image: Image
    anomaly_map: npt.NDArray[np.floating]
    mask: npt.NDArray[np.bool_] | None = None


class Comparison(NamedTuple):
    """Another method or baseline on the same test images; None where it has no maps."""

    name: str
    image_auroc: float
    pixel_auroc: float | None = None
    aupro: float | None = None


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
        """Share of the images that are rejected."""
        return self.rejected / self.total


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that `report.write_report` shows of one evaluation.

    defects: each test image's type (`normal` for a good one); scores: float [N], the image scores.
    pixel, pixel_roc and pro are None for a test set without masks. heat: the one colour scale of
    all maps, see `heatmap.heat_range`. protocol: facts in the order to show them, such as seed,
    image size, backbone, counts, date, time.
    """

    title: str
    dataset: str
    category: str
    method: str
    defects: tuple[str, ...]
    scores: npt.NDArray[np.floating]
    calibration: Calibration
    image: ImageMetrics
    image_roc: Curve
    heat: HeatRange
    pixel: PixelMetrics | None = None
    pixel_roc: Curve | None = None
    pro: Curve | None = None
    per_type: tuple[TypeMetrics, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    misses: tuple[Example, ...] = ()
    false_alarms: tuple[Example, ...] = ()
    detections: tuple[Example, ...] = ()
    protocol: Mapping[str, str]
    normal: str = "good"

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
    """Choose up to `count` images of each kind to show; no detection is also among the misses.

    labels: bool [N], True is anomalous; scores: float [N].
    """
    order = [int(i) for i in np.argsort(scores, kind="stable")]
    rising = [i for i in order if labels[i]]
    normals = [i for i in reversed(order) if not labels[i]]
    misses = rising[:count]
    detections = rising[len(misses) :][::-1][:count]
    return Picks(tuple(misses), tuple(normals[:count]), tuple(detections))

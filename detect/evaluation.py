"""Metrics of a detector on a category's test split. The only reader of that split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from detect.metrics import (
    Curve,
    ImageMetrics,
    PixelMetrics,
    TypeMetrics,
    image_metrics,
    per_type,
    pixel_metrics,
    pixel_roc_curve,
    pro_curve,
    roc_curve,
)
from detect.report_data import Comparison
from detect.scoring import Scored
from synth.catalog import Category, Record
from synth.errors import UserError
from synth.images import Progress, read_image, read_mask
from synth.progress import Bars


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one scorer on the test images; those of pixels are None without masks."""

    image: ImageMetrics
    image_roc: Curve
    pixel: PixelMetrics | None
    pixel_roc: Curve | None
    pro: Curve | None
    per_type: tuple[TypeMetrics, ...]


def require_both_labels(category: Category) -> None:
    """Raise UserError unless the test split has normal and anomalous images."""
    anomalous = sum(record.is_anomalous for record in category.test)
    if not 0 < anomalous < len(category.test):
        raise UserError(
            f"{category.name}: the test images are {len(category.test) - anomalous} normal and "
            f"{anomalous} anomalous; an evaluation needs both (test/good and test/<defect>); "
            "`detect predict` needs neither"
        )


class TestSet(NamedTuple):
    """The test images of a category, all readable; masks: bool [H, W] each, or None for none."""

    category: Category
    records: tuple[Record, ...]
    masks: Sequence[NDArray[np.bool_]] | None

    @property
    def paths(self) -> list[Path]:
        """The image files."""
        return [record.path for record in self.records]


def open_test_set(category: Category, bars: Bars) -> TestSet:
    """Read every test image and mask once, before long work.

    Raises UserError for a single label, an unreadable file, and a mask of another size than its
    image.
    """
    require_both_labels(category)
    with bars("checking test images", "image") as update:
        return TestSet(category, category.test, native_masks(category.test, update))


def native_masks(
    records: Sequence[Record], progress: Progress | None = None
) -> list[NDArray[np.bool_]] | None:
    """The images' masks at their own resolution, empty for normal images.

    None unless every anomalous image has one. Raises UserError as `open_test_set`.
    """
    masks: list[NDArray[np.bool_]] = []
    for done, record in enumerate(records, start=1):
        shape = read_image(record.path).shape[:2]
        path = record.mask_path
        masks.append(np.zeros(shape, np.bool_) if path is None else read_mask(path, shape))
        if progress is not None:
            progress(done, len(records))
    known = all(record.mask_path or not record.is_anomalous for record in records)
    return masks if known else None


def native_map(anomaly_map: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Bring a map float32 [h, w] bilinearly to an image's or mask's shape (H, W)."""
    size = (shape[1], shape[0])
    return np.asarray(cv2.resize(anomaly_map, size, interpolation=cv2.INTER_LINEAR), np.float32)


def evaluate(test: TestSet, scored: Scored) -> Evaluation:
    """All figures of scored test images, pixels at the masks' own resolution.

    An image's label is its record's, whatever its mask.

    Raises UserError for a single label and for scores that are not finite.
    """
    masks = test.masks
    labels = np.array([record.is_anomalous for record in test.records])
    defects = [record.defect for record in test.records]
    maps = None
    if masks is not None:
        pairs = zip(scored.maps, masks, strict=True)
        maps = [native_map(scores, mask.shape) for scores, mask in pairs]
    return Evaluation(
        image=image_metrics(labels, scored.scores),
        image_roc=roc_curve(labels, scored.scores),
        pixel=None if maps is None or masks is None else pixel_metrics(masks, maps),
        pixel_roc=None if maps is None or masks is None else pixel_roc_curve(masks, maps),
        pro=None if maps is None or masks is None else pro_curve(masks, maps),
        per_type=per_type(defects, scored.scores, masks, maps),
    )


def comparison(name: str, evaluation: Evaluation) -> Comparison:
    """One row of the report's table of baselines."""
    pixel = evaluation.pixel
    return Comparison(
        name, evaluation.image.auroc, pixel.auroc if pixel else None, pixel.aupro if pixel else None
    )

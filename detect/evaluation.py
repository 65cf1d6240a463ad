"""Metrics of a detector on a category's test split, and the report that shows them. The only reader of that split."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from detect.calibration import Calibration
from detect.heatmap import heat_range
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
from detect.report_data import Comparison, Example, ReportData, pick_examples
from detect.scoring import Scored
from synth.catalog import Category, Record
from synth.errors import UserError
from synth.files import atomic_path, write_json
from synth.images import read_image, read_mask


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one scorer on the test images; pixel figures are None where defects have no masks."""

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
            f"{category.name}: the test images are {len(category.test) - anomalous} normal and {anomalous} anomalous; "
            "an evaluation needs both (test/good and test/<defect>); `detect predict` needs neither"
        )


def native_masks(records: Sequence[Record]) -> list[NDArray[np.bool_]] | None:
    """The test images' masks at their own resolution, empty for normal images; None unless every defect has one.

    Raises UserError for a mask of another size than its image.
    """
    if any(record.is_anomalous and record.mask_path is None for record in records):
        return None
    masks = []
    for record in records:
        shape = read_image(record.path).shape[:2]
        masks.append(
            np.zeros(shape, np.bool_)
            if record.mask_path is None
            else read_mask(record.mask_path, shape)
        )
    return masks


def native_maps(
    maps: NDArray[np.float32], masks: Sequence[NDArray[np.bool_]]
) -> list[NDArray[np.float32]]:
    """Anomaly maps [N, H, W] brought bilinearly to each mask's own size."""
    return [
        np.asarray(cv2.resize(m, mask.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
        for m, mask in zip(maps, masks, strict=True)
    ]


def evaluate(
    records: Sequence[Record], scored: Scored, masks: Sequence[NDArray[np.bool_]] | None
) -> Evaluation:
    """All figures of scored test images; an image's label is its record's, whatever its mask.

    Raises UserError for a single label and for scores that are not finite.
    """
    labels = np.array([record.is_anomalous for record in records])
    defects = [record.defect for record in records]
    maps = None if masks is None else native_maps(scored.maps, masks)
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


def make_report(
    category: Category,
    method: str,
    evaluation: Evaluation,
    scored: Scored,
    masks: Sequence[NDArray[np.bool_]] | None,
    calibration: Calibration,
    comparisons: Sequence[Comparison],
    protocol: Mapping[str, str],
) -> ReportData:
    """What the report shows: figures, curves, and the test images worth looking at."""
    records = category.test
    labels = np.array([record.is_anomalous for record in records])
    picks = pick_examples(labels, scored.scores)

    def examples(numbers: Sequence[int]) -> tuple[Example, ...]:
        found = []
        for n in numbers:
            image = read_image(records[n].path)
            found.append(
                Example(
                    name=records[n].path.name,
                    defect=records[n].defect,
                    score=float(scored.scores[n]),
                    image=image,
                    anomaly_map=cv2.resize(
                        scored.maps[n], image.shape[1::-1], interpolation=cv2.INTER_LINEAR
                    ),
                    mask=None if masks is None else masks[n],
                )
            )
        return tuple(found)

    return ReportData(
        title=f"{method} on {category.name}",
        dataset=category.dataset,
        category=category.name,
        method=method,
        defects=tuple(record.defect for record in records),
        scores=scored.scores,
        calibration=calibration,
        image=evaluation.image,
        image_roc=evaluation.image_roc,
        pixel=evaluation.pixel,
        pixel_roc=evaluation.pixel_roc,
        pro=evaluation.pro,
        per_type=evaluation.per_type,
        heat=heat_range(scored.maps),
        comparisons=tuple(comparisons),
        misses=examples(picks.misses),
        false_alarms=examples(picks.false_alarms),
        detections=examples(picks.detections),
        protocol=protocol,
    )


def write_results(out: Path, data: ReportData, records: Sequence[Record], scored: Scored) -> None:
    """results.json (figures), scores.csv (a row per image), scores.npz (scores, labels, float16 maps)."""
    write_json(out / "results.json", results_json(data))
    with atomic_path(out / "scores.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            paths=np.array([str(record.path) for record in records]),
            defects=np.array(data.defects),
            scores=scored.scores,
            maps=scored.maps.astype(np.float16),
        )
    rows = zip(records, scored.scores, strict=True)
    write_scores(
        out / "scores.csv",
        [(record.path, record.defect, float(score)) for record, score in rows],
        data.calibration,
    )


def results_json(data: ReportData) -> dict[str, Any]:
    """The report's figures as plain JSON types."""

    def figures(image: ImageMetrics, pixel: PixelMetrics | None) -> dict[str, Any]:
        return {"image": image._asdict(), "pixel": pixel._asdict() if pixel else None}

    return {
        "dataset": data.dataset,
        "category": data.category,
        "method": data.method,
        **figures(data.image, data.pixel),
        "per_type": [
            {"defect": row.defect, "num_images": row.num_images, **figures(row.image, row.pixel)}
            for row in data.per_type
        ],
        "threshold": data.calibration.threshold,
        "false_reject_rate": {
            "asked": data.calibration.false_reject_rate,
            "guaranteed": data.calibration.guaranteed_rate,
            "on_test_normals": data.caught(data.normal).share,
        },
        "defects_caught": data.caught_defects.share,
        "comparisons": [row._asdict() for row in data.comparisons],
        "protocol": dict(data.protocol),
    }


def write_scores(
    path: Path, rows: Sequence[tuple[Path, str, float]], calibration: Calibration
) -> None:
    """A CSV row per image: file, what it is (if known), score, p-value among held-out normals, verdict."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "defect", "score", "threshold", "p_value", "verdict"])
        for image, defect, score in rows:
            verdict = "anomalous" if calibration.rejects(score) else "normal"
            p_value = f"{calibration.p_value(score):.4g}"
            table.writerow(
                [image, defect, f"{score:.6g}", f"{calibration.threshold:.6g}", p_value, verdict]
            )

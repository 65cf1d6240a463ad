"""Results of an evaluation or a prediction as files: report data, results.json, scores."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detect.calibration import Calibration
from detect.evaluation import Evaluation, TestSet, native_map
from detect.heatmap import heat_range
from detect.metrics import ImageMetrics, PixelMetrics
from detect.report_data import Comparison, Example, ReportData, pick_examples
from detect.scoring import Scored
from synth.files import atomic_path, write_json
from synth.images import read_image


def make_report(
    test: TestSet,
    method: str,
    evaluation: Evaluation,
    scored: Scored,
    calibration: Calibration,
    comparisons: Sequence[Comparison],
    protocol: Mapping[str, str],
) -> ReportData:
    """What the report shows: figures, curves, and the test images worth looking at."""
    labels = np.array([record.is_anomalous for record in test.records])
    picks = pick_examples(labels, scored.scores)
    return ReportData(
        title=f"{method} on {test.category.name}",
        dataset=test.category.dataset,
        category=test.category.name,
        method=method,
        defects=tuple(record.defect for record in test.records),
        scores=scored.scores,
        calibration=calibration,
        image=evaluation.image,
        image_roc=evaluation.image_roc,
        pixel=evaluation.pixel,
        pixel_roc=evaluation.pixel_roc,
        pro=evaluation.pro,
        per_type=evaluation.per_type,
        heat=heat_range(list(scored.maps)),
        comparisons=tuple(comparisons),
        misses=tuple(make_example(test, scored, n) for n in picks.misses),
        false_alarms=tuple(make_example(test, scored, n) for n in picks.false_alarms),
        detections=tuple(make_example(test, scored, n) for n in picks.detections),
        protocol=protocol,
    )


def make_example(test: TestSet, scored: Scored, number: int) -> Example:
    """One test image to show, its map brought to its own size."""
    record = test.records[number]
    image = read_image(record.path)
    return Example(
        name=record.path.name,
        defect=record.defect,
        score=float(scored.scores[number]),
        image=image,
        anomaly_map=native_map(scored.maps[number], image.shape[:2]),
        mask=None if test.masks is None else test.masks[number],
    )


def write_results(out: Path, data: ReportData, test: TestSet, scored: Scored) -> None:
    """Write results.json (figures), scores.csv (a row per image) and scores.npz.

    scores.npz: paths, defects, scores float32 [N], and maps float16 [N, H, W] (for pictures; the
    figures come from float32).
    """
    records = test.records
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
    """A CSV row per image: file, defect (if known), score, threshold, p-value, verdict.

    The p-value is the score's among the held-out normals.
    """
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "defect", "score", "threshold", "p_value", "verdict"])
        for image, defect, score in rows:
            verdict = "anomalous" if calibration.rejects(score) else "normal"
            p_value = f"{calibration.p_value(score):.4g}"
            table.writerow(
                [image, defect, f"{score:.6g}", f"{calibration.threshold:.6g}", p_value, verdict]
            )

"""Results of an evaluation or a prediction as files: report data, results.json, scores."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np

from detect.calibration import Calibration
from detect.evaluation.best import LABEL, Best
from detect.evaluation.bootstrap import COVERAGE, NUM_RESAMPLES
from detect.evaluation.measure import Evaluation, native_map
from detect.evaluation.metrics import FPR_LIMIT, Figures, PixelMetrics
from detect.evaluation.report_data import Comparison, Example, ReportData, pick_examples
from detect.evaluation.seeds import Seeds
from detect.evaluation.testset import TestSet
from detect.heatmap import heat_range
from detect.scoring import ParkedMaps
from synth.base.files import atomic_path, write_json
from synth.images import read_image

NUM_HEAT_MAPS = 256  # the colour scale is taken from this many maps, evenly over the test set
FLOAT16_MAX = float(np.finfo(np.float16).max)


def make_report(
    test: TestSet,
    method: str,
    evaluation: Evaluation,
    maps: ParkedMaps,
    calibration: Calibration,
    comparisons: Sequence[Comparison],
    protocol: Mapping[str, str],
    seeds: Seeds | None = None,
    best_on_test: Best | None = None,
) -> ReportData:
    """What the report shows: figures, curves, and the test images worth looking at.

    maps: of all test images. The evaluation must be a whole one.
    """
    assert evaluation.curves is not None
    picks = pick_examples(test.labels, evaluation.scores)
    step = -(-len(maps) // NUM_HEAT_MAPS)
    notes = test.cautions() + ([seeds.caution] if seeds and seeds.caution else [])

    def examples(numbers: Sequence[int]) -> tuple[Example, ...]:
        return tuple(make_example(test, evaluation, maps, number) for number in numbers)

    return ReportData(
        title=f"{method} on {test.category.name}",
        dataset=test.category.dataset,
        category=test.category.name,
        method=method,
        defects=tuple(record.defect for record in test.records),
        scores=evaluation.scores,
        calibration=calibration,
        figures=evaluation.figures,
        curves=evaluation.curves,
        rounding=evaluation.rounding,
        per_type=evaluation.per_type,
        seeds=seeds,
        best_on_test=best_on_test,
        heat=heat_range(maps[number] for number in range(0, len(maps), step)),
        comparisons=tuple(comparisons),
        misses=examples(picks.misses),
        false_alarms=examples(picks.false_alarms),
        detections=examples(picks.detections),
        protocol=protocol,
        notes=tuple(notes),
        normal=test.normal,
    )


def make_example(test: TestSet, evaluation: Evaluation, maps: ParkedMaps, number: int) -> Example:
    """One test image to show, its map brought to its own size."""
    record = test.records[number]
    return Example(
        name=record.path.name,
        defect=record.defect,
        score=float(evaluation.scores[number]),
        image=read_image(record.path),
        anomaly_map=native_map(maps[number], test.shapes[number]),
        mask=test.mask(number) if test.has_masks else None,
    )


def write_results(out: Path, data: ReportData, test: TestSet, maps: ParkedMaps) -> None:
    """Write results.json (figures), scores.csv (a row per image) and scores.npz.

    scores.npz: paths, defects, scores float32 [N], and maps [N, H, W]: float16, or float32 where a
    score is beyond float16 (for pictures; the figures come from float32).
    """
    write_json(out / "results.json", results_json(data))
    write_arrays(out / "scores.npz", data, test, maps)
    rows = zip(test.records, data.scores, strict=True)
    write_scores(
        out / "scores.csv",
        [(record.path, record.defect, float(score)) for record, score in rows],
        data.calibration,
    )


def write_arrays(path: Path, data: ReportData, test: TestSet, maps: ParkedMaps) -> None:
    """Write an .npz as `numpy.savez_compressed` does, map by map."""
    arrays = {
        "paths": np.array([str(path) for path in test.paths]),
        "defects": np.array(data.defects),
        "scores": data.scores,
    }
    dtype = np.dtype(np.float16 if maps.highest <= FLOAT16_MAX else np.float32)
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (len(maps), *maps.shape),
    }
    with atomic_path(path) as partial, ZipFile(partial, "w", ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
        with archive.open("maps.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for number in range(len(maps)):
                file.write(maps[number].astype(dtype).tobytes())


def results_json(data: ReportData) -> dict[str, Any]:
    """The report's figures as plain JSON types."""
    return {
        "dataset": data.dataset,
        "category": data.category,
        "method": data.method,
        **figures_json(data.figures),
        "interval_rule": {
            "coverage": COVERAGE,
            "num_resamples": NUM_RESAMPLES,
            "resampled": "test images, normal and anomalous apart",
            "pixel_rounding": data.rounding,
        },
        "per_type": [
            {"defect": row.defect, "num_images": row.num_images, **figures_json(row.figures)}
            for row in data.per_type
        ],
        "threshold": data.calibration.threshold,
        "false_reject_rate": {
            "asked": data.calibration.false_reject_rate,
            "guaranteed": data.calibration.guaranteed_rate,
            "on_test_normals": data.caught(data.normal).share,
        },
        "defects_caught": data.caught_defects.share,
        "comparisons": [comparison_json(row) for row in data.comparisons],
        "best_on_test": best_json(data.best_on_test),
        "seeds": seeds_json(data.seeds) if data.seeds else None,
        "notes": list(data.notes),
        "protocol": dict(data.protocol),
    }


def best_json(best: Best | None) -> dict[str, Any] | None:
    """What is for comparison with papers alone, and says so."""
    return None if best is None else {"label": LABEL, **best._asdict()}


def figures_json(figures: Figures) -> dict[str, Any]:
    """Metrics and their intervals, [low, high]; those of pixels null where undefined."""
    return {
        "image": figures.image._asdict(),
        "pixel": pixel_json(figures.pixel),
        "intervals": {
            "image": {field: list(pair) for field, pair in figures.image_intervals.items()},
            "pixel": {field: list(pair) for field, pair in figures.pixel_intervals.items()},
        },
    }


def pixel_json(pixel: PixelMetrics | None) -> dict[str, float] | None:
    """Pixel metrics with the limit of `aupro`."""
    return None if pixel is None else {**pixel._asdict(), "fpr_limit": FPR_LIMIT}


def comparison_json(row: Comparison) -> dict[str, Any]:
    """A row of the table of comparisons."""
    pixel = row.pixel
    return {
        "name": row.name,
        "image_auroc": row.image.auroc,
        "pixel_auroc": pixel.auroc if pixel else None,
        "aupro": pixel.aupro if pixel else None,
        "image": row.image._asdict(),
        "pixel": pixel_json(pixel),
        "image_auroc_gain_interval": list(row.auroc_gain) if row.auroc_gain else None,
        "aupro_gain_interval": list(row.aupro_gain) if row.aupro_gain else None,
    }


def seeds_json(seeds: Seeds) -> dict[str, Any]:
    """Mean and sample standard deviation over trainings, and each training."""
    return {
        "num_trainings": len(seeds.trainings),
        "differing": list(seeds.differing),
        "image": {field: value._asdict() for field, value in seeds.image.items()},
        "pixel": {field: value._asdict() for field, value in seeds.pixel.items()} or None,
        "trainings": [
            {
                "name": row.name,
                "seed": row.seed,
                "image": row.image._asdict(),
                "pixel": pixel_json(row.pixel),
            }
            for row in seeds.trainings
        ],
    }


def write_scores(
    path: Path, rows: Sequence[tuple[Path, str, float]], calibration: Calibration
) -> None:
    """A CSV row per image: file, defect (if known), score, threshold, p-value, verdict.

    The p-value is the score's among the held-out normals.
    """
    with (
        atomic_path(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.writer(file)
        table.writerow(["file", "defect", "score", "threshold", "p_value", "verdict"])
        for image, defect, score in rows:
            verdict = "anomalous" if calibration.rejects(score) else "normal"
            p_value = f"{calibration.p_value(score):.4g}"
            table.writerow(
                [image, defect, f"{score:.6g}", f"{calibration.threshold:.6g}", p_value, verdict]
            )

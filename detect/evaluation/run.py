"""An evaluation from folders to files: detectors in, results and report out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch

from detect.checkpoint import load_detector
from detect.evaluation.comparison import comparison, evaluate_baseline, evaluate_detector
from detect.evaluation.measure import Evaluation
from detect.evaluation.metrics import ImageMetrics, PixelMetrics
from detect.evaluation.protocol import detector_name, protocol
from detect.evaluation.report_data import Comparison, ReportData
from detect.evaluation.results import make_report, write_results
from detect.evaluation.seeds import Seeds, Training, summarise
from detect.evaluation.testset import TestSet
from detect.evaluation.watch import best_on_test
from detect.scoring import ParkedMaps
from detect.scratch import Scratch
from synth.base.files import write_json
from synth.base.progress import Bars


class MeasuredDetector(NamedTuple):
    """A detector's figures and what it was trained with; the detector itself is let go."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    evaluation: Evaluation


def check_detectors(folders: Sequence[Path]) -> dict[Path, tuple[str, ...]]:
    """Load every detector once, before long work, and say which categories it was trained on.

    Raises UserError as `load_detector`.
    """
    device = torch.device("cpu")
    return {folder: load_detector(folder, device).categories for folder in folders}


def report_on(
    test: TestSet,
    models: Sequence[Path],
    compare: Sequence[Path],
    out: Path,
    device: torch.device,
    batch_size: int | None,
    bars: Bars,
    false_reject_rate: float | None = None,
) -> ReportData:
    """Measure detectors on the test images and write the results into `out`.

    models: trainings of one detector, of which the first is shown in full and all are averaged;
    compare: further detectors, one row each. One detector is in memory at a time.
    false_reject_rate: sets another threshold from the held-out scores; None keeps the stored one.
    """

    def measured(folder: Path, maps: ParkedMaps | None = None) -> MeasuredDetector:
        other = load_detector(folder, device)
        evaluation = evaluate_detector(other, test, out, device, batch_size, bars, maps)
        config = {**other.config, "num_steps": other.num_steps}
        return MeasuredDetector(folder, detector_name(other), config, evaluation)

    with Scratch(out) as scratch:
        maps = ParkedMaps(scratch)
        first, *repeats = [measured(folder, None if n else maps) for n, folder in enumerate(models)]
        rows = [compared(measured(folder), first) for folder in compare]
        trained = load_detector(models[0], device)
        baseline = evaluate_baseline(test, trained.image_size, out, bars)
        rows.append(comparison("distance to the mean training image", baseline, first.evaluation))
        best = best_on_test(models[0], test.category)
        report = make_report(
            test,
            first.name,
            first.evaluation,
            maps,
            trained.calibration_for(test.category.name).at_rate(false_reject_rate),
            rows,
            protocol(trained, test.category, watched=best is not None),
            averaged([first, *repeats]) if repeats else None,
            best,
        )
        write_results(out, report, test, maps)
    return report


def compared(other: MeasuredDetector, first: MeasuredDetector) -> Comparison:
    """Another detector's row; where it lies tells it from others of its kind."""
    name = f"{other.name} ({other.folder.resolve().name})"
    return comparison(name, other.evaluation, first.evaluation)


def averaged(measured: Sequence[MeasuredDetector]) -> Seeds:
    """Mean and spread over trainings."""
    trainings = [
        Training(
            one.folder.resolve().name,
            one.config["detector"]["seed"],
            one.evaluation.figures.image,
            one.evaluation.figures.pixel,
        )
        for one in measured
    ]
    return summarise(trainings, [one.config for one in measured])


def averages(rows: Sequence[Comparison]) -> Comparison:
    """The means over categories; of pixels only where all have them."""
    images = [row.image for row in rows]
    pixels = [row.pixel for row in rows if row.pixel is not None]
    image = ImageMetrics(*map(mean, zip(*images, strict=True)))
    whole = len(pixels) == len(rows)
    pixel = PixelMetrics(*map(mean, zip(*pixels, strict=True))) if whole else None
    return Comparison("mean", image, pixel)


def write_averages(path: Path, rows: Sequence[Comparison]) -> None:
    """Write the figures of every category, by its name, and their means."""

    def figures(row: Comparison) -> dict[str, Any]:
        return {"image": row.image._asdict(), "pixel": row.pixel and row.pixel._asdict()}

    found = {row.name: figures(row) for row in rows}
    write_json(path, {"mean": figures(averages(rows)), "categories": found})

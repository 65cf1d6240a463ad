"""Detectors and a baseline on the same test images, for a table of comparisons."""

from pathlib import Path

import torch

from detect.checkpoint import TrainedDetector
from detect.evaluation import TestSet, comparison, evaluate
from detect.protocol import detector_name
from detect.report_data import Comparison
from detect.scoring import Scored, detector_scorer, mean_image_scorer, score_files
from synth.normals import load_normals
from synth.progress import Bars


def score_test_set(
    trained: TrainedDetector, test: TestSet, device: torch.device, batch_size: int, bars: Bars
) -> Scored:
    """Score the test images with a detector, at its own image size."""
    scorer = detector_scorer(trained.detector, device)
    with bars(f"scoring with {detector_name(trained)}", "image") as update:
        return score_files(
            scorer, test.paths, trained.image_size, batch_size=batch_size, progress=update
        )


def compare_detector(
    folder: Path,
    trained: TrainedDetector,
    test: TestSet,
    device: torch.device,
    batch_size: int,
    bars: Bars,
) -> Comparison:
    """Another detector's row; `folder`, where it lies, tells it from others of its kind."""
    scored = score_test_set(trained, test, device, batch_size, bars)
    name = f"{detector_name(trained)} ({folder.resolve().name})"
    return comparison(name, evaluate(test, scored))


def compare_baseline(test: TestSet, size: tuple[int, int], bars: Bars) -> Comparison:
    """The row of the mean training image, which a detector that learned something must beat."""
    training = load_normals(test.category, size, bars).fit
    with bars("scoring with the mean image", "image") as update:
        scored = score_files(mean_image_scorer(training), test.paths, size, progress=update)
    return comparison("distance to the mean training image", evaluate(test, scored))

"""Detectors and a baseline on the same test images, for a table of comparisons."""

from collections.abc import Iterator
from pathlib import Path

import torch

from detect.checkpoint import TrainedDetector
from detect.evaluation.bootstrap import difference
from detect.evaluation.measure import Evaluation, evaluate
from detect.evaluation.metrics import ImageMetrics, PixelMetrics
from detect.evaluation.protocol import detector_name
from detect.evaluation.report_data import Comparison
from detect.evaluation.testset import TestSet
from detect.scoring import (
    ParkedMaps,
    Scored,
    Scorer,
    detector_scorer,
    mean_image,
    mean_image_scorer,
    score_batches,
)
from synth.base.progress import Bars
from synth.data.catalog import held_out

AUROC, AUPRO = ImageMetrics._fields.index("auroc"), PixelMetrics._fields.index("aupro")


def evaluate_detector(
    trained: TrainedDetector,
    test: TestSet,
    out: Path,
    device: torch.device,
    batch_size: int | None,
    bars: Bars,
    maps: ParkedMaps | None = None,
) -> Evaluation:
    """Measure a detector at its own image size; whole, and its maps kept, where `maps` is given."""
    scorer = detector_scorer(trained.detector, device)
    title = f"scoring with {detector_name(trained)}"
    batches = scored_batches(scorer, test, trained.image_size, batch_size, title, bars)
    if maps is None:
        return evaluate(test, batches, out, whole=False)
    return evaluate(test, maps.park(batches), out)


def scored_batches(
    scorer: Scorer,
    test: TestSet,
    size: tuple[int, int],
    batch_size: int | None,
    title: str,
    bars: Bars,
) -> Iterator[Scored]:
    """Score the test images batch by batch under a bar."""
    with bars(title, "image") as update:
        yield from score_batches(scorer, test.paths, size, batch_size=batch_size, progress=update)


def evaluate_baseline(test: TestSet, size: tuple[int, int], out: Path, bars: Bars) -> Evaluation:
    """Measure the mean training image, which a detector that learned something must beat."""
    paths = [record.path for record in held_out(test.category)[0]]
    with bars("averaging the training images", "image") as update:
        scorer = mean_image_scorer(mean_image(paths, size, update))
    batches = scored_batches(scorer, test, size, 16, "scoring with the mean image", bars)
    return evaluate(test, batches, out, whole=False)


def comparison(name: str, other: Evaluation, own: Evaluation | None = None) -> Comparison:
    """One row of the table of comparisons; with `own`, how far that one's gain is from chance."""
    auroc_gain = aupro_gain = None
    if own is not None:
        auroc_gain = difference(own.image_samples[:, AUROC], other.image_samples[:, AUROC])
        if own.pixel_samples is not None and other.pixel_samples is not None:
            aupro_gain = difference(own.pixel_samples[:, AUPRO], other.pixel_samples[:, AUPRO])
    return Comparison(name, other.figures.image, other.figures.pixel, auroc_gain, aupro_gain)

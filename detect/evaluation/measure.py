"""Metrics of a detector on a category's test split.

Nothing is chosen here: every figure is of the detector as it was saved. Memory does not grow with
the number of images but for some 20 kilobytes each.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from detect.evaluation.bootstrap import (
    Resamples,
    binned_figures,
    draw,
    image_samples,
    intervals,
    pixel_samples,
)
from detect.evaluation.exact import exact_sums
from detect.evaluation.metrics import (
    FPR_LIMIT,
    STRICT_FPR_LIMIT,
    Curves,
    Figures,
    ImageMetrics,
    PixelMetrics,
    TypeMetrics,
    image_metrics,
    roc_curve,
)
from detect.evaluation.pixels import BinnedPixels, Bins, PixelRuns
from detect.evaluation.ranking import (
    Float64Array,
    cut,
    pro_vertices,
    rank_bins,
    roc_vertices,
    thin,
)
from detect.evaluation.testset import ALL_DEFECTS, TestSet
from detect.scoring import Scored
from detect.scratch import Scratch


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one scorer on the test images; those of pixels are None where undefined.

    scores: float32 [N]. rounding: by how much the bins behind the pixels' intervals move a metric
    at most. image_samples, pixel_samples: the metrics of every resample of the test images, float64
    [R, 3] and [R, 5]; the resamples are the same for every scorer, so that differences can be told
    from chance.
    """

    scores: NDArray[np.float32]
    figures: Figures
    per_type: tuple[TypeMetrics, ...]
    curves: Curves | None
    rounding: float
    image_samples: Float64Array
    pixel_samples: Float64Array | None


def native_map(anomaly_map: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Bring a map float32 [h, w] bilinearly to an image's or mask's shape (H, W)."""
    size = (shape[1], shape[0])
    return np.asarray(cv2.resize(anomaly_map, size, interpolation=cv2.INTER_LINEAR), np.float32)


def evaluate(
    test: TestSet, batches: Iterable[Scored], folder: Path | None = None, *, whole: bool = True
) -> Evaluation:
    """All figures of scored test images, pixels at the masks' own resolution.

    batches: the images' scores and maps, in order. folder: where about 4 bytes per pixel are parked
    meanwhile; None keeps them in memory. whole: with curves and defect types; else without.

    Raises UserError for a single label, for scores that are not finite, and for a full disk.
    """
    with Scratch(folder) as scratch:
        pixels = PixelRuns(scratch)
        scores = collect(test, batches, pixels)
        normal = draw(test.indices(test.normal), 0)
        names = (ALL_DEFECTS, *test.defects) if whole else (ALL_DEFECTS,)
        sets = {name: draw(test.indices(name), key) for key, name in enumerate(names, start=1)}
        on_images = measure_images(test, scores, normal, sets)
        on_pixels = measure_pixels(test, pixels, scratch, normal, sets)

    figures = {name: figures_of(on_images[name], on_pixels, name) for name in names}
    return Evaluation(
        scores=scores,
        figures=figures[ALL_DEFECTS],
        per_type=tuple(
            TypeMetrics(name, len(sets[name].indices), figures[name]) for name in names[1:]
        ),
        curves=trace(test, scores, on_pixels) if whole else None,
        rounding=on_pixels.rounding if on_pixels else 0.0,
        image_samples=on_images[ALL_DEFECTS].samples,
        pixel_samples=on_pixels.samples[ALL_DEFECTS] if on_pixels else None,
    )


def measure_points(
    test: TestSet, batches: Iterable[Scored], folder: Path | None = None
) -> tuple[ImageMetrics, PixelMetrics | None]:
    """The figures of all defect types together, as `evaluate`, without their intervals."""
    with Scratch(folder) as scratch:
        pixels = PixelRuns(scratch)
        image = image_metrics(test.labels, collect(test, batches, pixels))
        if not any(run.num_anomalous for run in pixels.runs):
            return image, None
        binned = BinnedPixels(pixels, scratch)
        return image, exact_metrics(test, pixels, binned, [ALL_DEFECTS])[ALL_DEFECTS]


def collect(test: TestSet, batches: Iterable[Scored], pixels: PixelRuns) -> NDArray[np.float32]:
    """Put the pixels of every batch into `pixels`; returns the image scores, float32 [N]."""
    scores: list[float] = []  # not arrays: see PixelRuns
    number = 0
    for scored in batches:
        scores += scored.scores.tolist()
        for anomaly_map in scored.maps:
            if test.has_masks:
                record = test.records[number]
                mask = test.mask(number) if record.is_anomalous else None
                pixels.add(native_map(anomaly_map, test.shapes[number]), mask, record.defect)
            number += 1
    return np.array(scores, np.float32)


class OnImages(NamedTuple):
    """Image metrics of a set of anomalous images with the normal ones, and of its resamples."""

    metrics: ImageMetrics
    samples: Float64Array


def measure_images(
    test: TestSet, scores: NDArray[np.float32], normal: Resamples, sets: Mapping[str, Resamples]
) -> dict[str, OnImages]:
    """Image metrics of every set."""
    labels, found = test.labels, {}
    for name, drawn in sets.items():
        chosen = [*normal.indices, *drawn.indices]
        metrics = image_metrics(labels[chosen], scores[chosen])
        found[name] = OnImages(metrics, image_samples(normal, drawn, scores))
    return found


class OnPixels(NamedTuple):
    """Pixel metrics of every set that has them, and of its resamples; total: of all images."""

    metrics: Mapping[str, PixelMetrics]
    samples: Mapping[str, Float64Array]
    total: Bins
    rounding: float


def measure_pixels(
    test: TestSet,
    pixels: PixelRuns,
    scratch: Scratch,
    normal: Resamples,
    sets: Mapping[str, Resamples],
) -> OnPixels | None:
    """Pixel metrics of every set with an anomalous pixel; None where there is no such set."""
    if not any(run.num_anomalous for run in pixels.runs):
        return None
    binned = BinnedPixels(pixels, scratch)
    metrics = exact_metrics(test, pixels, binned, sets)
    samples = pixel_samples(binned, normal, {name: sets[name] for name in metrics})
    total = binned.total()
    moved = binned_figures(total) - np.array(metrics[ALL_DEFECTS])
    return OnPixels(metrics, samples, total, float(np.abs(moved).max()))


def exact_metrics(
    test: TestSet, pixels: PixelRuns, binned: BinnedPixels, names: Iterable[str]
) -> dict[str, PixelMetrics]:
    """Pixel metrics of each defect type, or of ALL_DEFECTS, that has an anomalous pixel."""
    groups = {
        name: (test.normal, *(test.defects if name == ALL_DEFECTS else [name])) for name in names
    }
    exact = exact_sums(pixels, binned, groups, (FPR_LIMIT, STRICT_FPR_LIMIT))
    return {name: PixelMetrics.of(sums) for name, sums in exact.items()}


def figures_of(on_images: OnImages, on_pixels: OnPixels | None, name: str) -> Figures:
    """One set's figures with their intervals."""
    image_intervals = intervals(on_images.samples, ImageMetrics._fields)
    if on_pixels is None or name not in on_pixels.metrics:
        return Figures(on_images.metrics, None, image_intervals, {})
    pixel_intervals = intervals(on_pixels.samples[name], PixelMetrics._fields)
    return Figures(on_images.metrics, on_pixels.metrics[name], image_intervals, pixel_intervals)


def trace(test: TestSet, scores: NDArray[np.float32], on_pixels: OnPixels | None) -> Curves:
    """Draw the curves; those of pixels through the exact points at the edges of the bins."""
    image_roc = roc_curve(test.labels, scores)
    if on_pixels is None:
        return Curves(image_roc=image_roc)
    ranking = rank_bins(*(counts[::-1] for counts in on_pixels.total))
    return Curves(
        image_roc=image_roc,
        pixel_roc=thin(roc_vertices(ranking)),
        pro=thin(cut(pro_vertices(ranking), FPR_LIMIT)),
    )

"""Train and measure the cells of a grid, one after the other; finished ones are not repeated."""

import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from detect.checkpoint import TrainedDetector, load_detector
from detect.evaluation.measure import evaluate
from detect.evaluation.testset import TestSet, open_test_set, require_both_labels
from detect.grid.cells import Cost, Result, cell_folder, data_facts, read_result, write_result
from detect.grid.costs import PeakMemory, Stopwatch, count_parameters, latency_ms
from detect.grid.methods import METHODS
from detect.options import TrainOptions
from detect.scoring import Scored, detector_scorer
from detect.training.sources import ImagePool, OpenSource, Part, open_source
from synth.config import Precision
from synth.data.catalog import Category
from synth.data.normals import Normals, load_normals
from synth.device import default_device, make_accelerator
from synth.errors import DataWarning
from synth.files import read_json, write_json
from synth.locks import sole_user
from synth.progress import Bars, Update

GRID_FILE, TIMING_FILE = "grid.json", "timing.json"
BATCH_SIZE = 16


class Entry(NamedTuple):
    """A row of the table: a method with its options and, where it takes one, its source."""

    name: str
    method: str
    options: TrainOptions
    parts: tuple[Part, ...] = ()


class Cell(NamedTuple):
    """One training to do. asked: all that its result depends on."""

    entry: Entry
    source: OpenSource
    options: TrainOptions
    folder: Path
    asked: dict[str, Any]


class CategoryData:
    """A category's images, loaded when first asked for and kept for all its cells."""

    def __init__(self, category: Category, bars: Bars) -> None:
        self.category, self.bars = category, bars
        self._normals: dict[tuple[int, int], Normals] = {}
        self._test_images: dict[tuple[int, int], ImagePool] = {}

    @cached_property
    def test(self) -> TestSet:
        """The test images, checked."""
        return open_test_set(self.category, self.bars)

    def normals(self, size: tuple[int, int]) -> Normals:
        """The training images at `size`."""
        if size not in self._normals:
            self._normals[size] = load_normals(self.category, size, self.bars)
        return self._normals[size]

    def test_images(self, size: tuple[int, int]) -> ImagePool:
        """The test images at `size`."""
        if size not in self._test_images:
            title = "loading test images"
            self._test_images[size] = ImagePool(self.test.paths, size, self.bars, title=title)
        return self._test_images[size]


def run_grid(
    categories: Sequence[Category],
    entries: Sequence[Entry],
    seeds: Sequence[int],
    out: Path,
    bars: Bars,
    *,
    is_main: bool = True,
) -> list[Result]:
    """Train and measure every entry on every category with every seed, each in its own folder.

    The detectors are those of the last step; the test images choose nothing. is_main: False in the
    further processes of a launch, which train along and return nothing.
    Raises UserError, before any training, for a category without both labels, a source that cannot
    be opened, and a finished cell of other settings.
    """
    for category in categories:
        require_both_labels(category)
    grid = {category: cells(category, entries, seeds, out) for category in categories}
    total = sum(map(len, grid.values()))
    found = [[read_result(cell.folder, cell.asked) for cell in row] for row in grid.values()]
    results: list[Result] = []
    with sole_user(out) if is_main else nullcontext():
        for (category, row), done in zip(grid.items(), found, strict=True):
            data = CategoryData(category, bars)
            for number, (cell, result) in enumerate(zip(row, done, strict=True), start=1):
                where = f"{cell.folder.relative_to(out)} ({len(results) + 1} of {total})"
                result = result or run_cell(cell, data, titled(bars, where))
                if result is not None:
                    results.append(result)
                if number == len(row) or row[number].source is not cell.source:
                    cell.source.forget()
    return results


def cells(
    category: Category, entries: Sequence[Entry], seeds: Sequence[int], out: Path
) -> list[Cell]:
    """The cells of a category; a source's are together, so that it is loaded once."""
    facts = data_facts(category)
    found: list[Cell] = []
    for entry in entries:
        source = open_source(entry.parts, category)
        for other in source.other_categories(category.name):
            warnings.warn(
                f"{entry.name}: anomaly images of category {other}, the normal images are of "
                f"{category.name}",
                DataWarning,
                stacklevel=2,
            )
        for seed in seeds:
            options = replace(entry.options, seed=seed)
            asked = {
                "method": entry.method,
                "options": chosen(options),
                "source": source.config,
                "data": facts,
            }
            folder = cell_folder(out, entry.name, category.name, seed)
            found.append(Cell(entry, source, options, folder, asked))
    return found


def chosen(options: TrainOptions) -> dict[str, Any]:
    """The options that are not as they are by default; the detector's config.json has them all."""
    default = asdict(TrainOptions())
    return {
        name: value
        for name, value in asdict(options).items()
        if name != "workers" and value != default[name]
    }


def run_cell(cell: Cell, data: CategoryData, bars: Bars) -> Result | None:
    """Train, measure and write results.json; None on all processes but the first."""
    method, device = METHODS[cell.entry.method], default_device()
    normals = data.normals(method.image_size(cell.options))
    watch = Stopwatch(bars, method.timed)
    with PeakMemory(device) as peak:
        if method.train(normals, cell.source, cell.options, cell.folder, watch) is None:
            return None
    seconds, peak_bytes = timing(cell.folder, watch.whole_seconds(), peak.bytes)
    trained = load_detector(cell.folder, device)
    evaluation = evaluate(data.test, scored(trained, data, device, bars), cell.folder, whole=False)
    result = Result(
        entry=cell.entry.name,
        category=data.category.name,
        seed=cell.options.seed,
        image=evaluation.figures.image,
        pixel=evaluation.figures.pixel,
        cost=Cost(
            seconds,
            *count_parameters(trained.detector),
            peak_bytes,
            latency_ms(trained.detector, trained.image_size, device),
        ),
        device=device_name(device),
    )
    write_result(cell.folder, cell.asked, result)
    return result


def timing(folder: Path, seconds: float | None, peak_bytes: int) -> tuple[float | None, int | None]:
    """Keep what training took, for a run that is killed while it measures the detector."""
    path = folder / TIMING_FILE
    if seconds is not None:
        write_json(path, {"seconds": seconds, "peak_bytes": peak_bytes})
    kept = read_json(path) if path.exists() else {}
    return kept.get("seconds"), kept.get("peak_bytes")


def scored(
    trained: TrainedDetector, data: CategoryData, device: torch.device, bars: Bars
) -> Iterator[Scored]:
    """Score the test images batch by batch."""
    scorer, pool = detector_scorer(trained.detector, device), data.test_images(trained.image_size)
    total = len(pool.paths)
    with bars("scoring test images", "image") as update:
        for start in range(0, total, BATCH_SIZE):
            numbers = range(start, min(start + BATCH_SIZE, total))
            yield scorer(np.stack([pool.image(number) for number in numbers]))
            update(numbers.stop, total)


def shared_options(options: TrainOptions, out: Path) -> tuple[TrainOptions, bool]:
    """Settle the arithmetic once for the whole grid; and whether this process is the first.

    "auto" is measured, and two measurements could differ between cells.
    """
    path = out / GRID_FILE
    asked = options.precision
    if asked == "auto" and path.exists():
        asked = read_json(path).get("precision", asked)
    accelerator = make_accelerator(asked)
    precision: Precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    if accelerator.is_main_process:
        write_json(path, {"precision": precision})
    return replace(options, precision=precision), accelerator.is_main_process


def titled(bars: Bars, where: str) -> Bars:
    """Bars whose titles say which cell they are of."""

    def opened(title: str, unit: str, *, continues: bool = False) -> AbstractContextManager[Update]:
        return bars(f"{where} {title}", unit, continues=continues)

    return opened


def device_name(device: torch.device) -> str:
    """Where it was measured, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({platform.machine()}, {threads} thread{'s' * (threads > 1)})"

"""Train and measure the cells of a grid, one after the other; finished ones are not repeated."""

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path

import torch

from detect.checkpoint import TrainedDetector, load_detector
from detect.evaluation.measure import evaluate
from detect.evaluation.testset import TestSet, open_test_set
from detect.grid.cells import Cost, Result, write_result
from detect.grid.costs import AddedMemory, Stopwatch, count_parameters, latency_ms
from detect.grid.methods import METHODS
from detect.grid.plan import Cell, Plan
from detect.scoring import Scored, detector_scorer, image_batches
from detect.training.sources import ImagePool
from synth.base.device import default_device
from synth.base.files import read_json, write_json
from synth.base.locks import sole_user
from synth.base.progress import Bars, Update
from synth.data.catalog import Category
from synth.data.normals import Normals, load_normals
from synth.pictures import all_grey

TIMING_FILE = "timing.json"


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


def run_grid(plan: Plan, bars: Bars) -> list[Result]:
    """Train and measure what is left of a grid, each cell in its own folder; all its results.

    The detectors are those of the last step; the test images choose nothing. The further processes
    of a launch train along and return nothing. Raises UserError for unreadable images, an empty
    foreground, and a folder that another command is training in.
    """
    total = sum(map(len, plan.cells.values()))
    results: list[Result] = []
    with sole_user(plan.out) if plan.is_main else nullcontext():
        if plan.is_main:
            plan.write()
        for category, row in plan.cells.items():
            data = CategoryData(category, bars)
            pairs = zip(row, plan.found[category], strict=True)
            for number, (cell, result) in enumerate(pairs, start=1):
                where = f"{cell.folder.relative_to(plan.out)} ({len(results) + 1} of {total})"
                result = result or run_cell(cell, data, titled(bars, where))
                if result is not None:
                    results.append(result)
                if number == len(row) or row[number].source is not cell.source:
                    cell.source.forget()
    return results


def run_cell(cell: Cell, data: CategoryData, bars: Bars) -> Result | None:
    """Train, measure and write results.json; None on all processes but the first."""
    method, device = METHODS[cell.entry.method], default_device()
    normals = data.normals(method.config(cell.options).image_size)
    watch = Stopwatch(bars, method.timed)
    if cell.source.parts:  # the cells share its images: they are no cost of the first
        cell.source.load(normals.size, all_grey(normals.fit), bars)
    with AddedMemory(device) as added:
        if method.train(normals, cell.source, cell.options, cell.folder, watch) is None:
            return None
    seconds, training_bytes = timing(cell.folder, watch.whole_seconds(), added.bytes)
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
            training_bytes,
            latency_ms(trained.detector, trained.image_size, device),
        ),
        device=device_name(device),
    )
    write_result(cell.folder, cell.asked, result)
    return result


def timing(
    folder: Path, seconds: float | None, training_bytes: int
) -> tuple[float | None, int | None]:
    """Keep what training took, for a run that is killed while it measures the detector."""
    path = folder / TIMING_FILE
    if seconds is not None:
        write_json(path, {"seconds": seconds, "training_bytes": training_bytes})
    kept = read_json(path) if path.exists() else {}
    return kept.get("seconds"), kept.get("training_bytes")


def scored(
    trained: TrainedDetector, data: CategoryData, device: torch.device, bars: Bars
) -> Iterator[Scored]:
    """Score the test images batch by batch."""
    scorer, pool = detector_scorer(trained.detector, device), data.test_images(trained.image_size)
    with bars("scoring test images", "image") as update:
        yield from image_batches(scorer, pool.image, len(pool.paths), progress=update)


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

"""Train and measure what is left of a grid, one training after the other."""

import gc
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import groupby
from statistics import median

import numpy as np
import psutil
import torch

from detect.checkpoint import load_detector
from detect.data.material import Product
from detect.evaluation.measure import evaluate
from detect.evaluation.testset import TestSet, open_test_set
from detect.grid.plan import Plan, Trial
from detect.grid.result import Cost, Result, write_result
from detect.images import ImagePool
from detect.scoring import Scored, Scorer, detector_scorer, image_batches
from detect.training.run import train_detector
from synth.base.device import default_device
from synth.base.locks import sole_user
from synth.base.memory import give_back_freed_memory
from synth.base.progress import Bars, Update
from synth.data.catalog import Category
from synth.data.normals import Normals, load_normals
from synth.pictures import all_grey

SAMPLE_SECONDS = 0.02
NUM_WARM, NUM_TIMED = 3, 15


class CategoryData:
    """A category's images, loaded when first asked for and kept for all its trainings."""

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
    """Train and measure what is left of a grid, each training in its own folder; all results.

    The detectors are those of the last step; the test images choose nothing. The further processes
    of a launch train along and return nothing. Raises UserError for unreadable images, an empty
    foreground, and a folder that another command is training in.
    """
    results: list[Result] = []
    number = 0
    with sole_user(plan.out) if plan.is_main else nullcontext():
        if plan.is_main:
            plan.write()
        for _, trials in groupby(plan.trials, lambda trial: trial.category.name):
            of_category = list(trials)
            data = CategoryData(of_category[0].category, bars)
            for trial, following in zip(of_category, [*of_category[1:], None], strict=True):
                number += 1
                where = f"{trial.folder.relative_to(plan.out)} ({number} of {len(plan.trials)})"
                result = trial.result or run_trial(trial, data, titled(bars, where))
                results += [] if result is None else [result]
                if following is None or following.source is not trial.source:
                    trial.source.forget()
    return results


def run_trial(trial: Trial, data: CategoryData, bars: Bars) -> Result | None:
    """Train, measure and write results.json; None on all processes but the first."""
    config, device = trial.options.row.recipe().configure(trial.options), default_device()
    normals = data.normals(config.image_size)
    if trial.source.parts:  # the trainings share its images: they are no cost of the first
        trial.source.load(normals.size, all_grey(normals.fit), bars)
    resumed, started = trial.state == "begun", time.perf_counter()
    with AddedMemory(device) as added:
        product = Product(normals, trial.source)
        if train_detector([product], trial.options, trial.folder, bars) is None:
            return None
    seconds = None if resumed else time.perf_counter() - started
    trained = load_detector(trial.folder, device)
    scorer, images = detector_scorer(trained.detector, device), data.test_images(normals.size)
    measured = evaluate(data.test, scored(scorer, images, bars), trial.folder, whole=False)
    result = Result(
        entry=trial.entry.name,
        category=trial.category.name,
        seed=trial.options.seed,
        image=measured.figures.image,
        pixel=measured.figures.pixel,
        cost=Cost(seconds, added.bytes, latency_ms(scorer, images)),
        device=device_name(device),
    )
    write_result(trial.folder, trial.asked, result)
    return result


def scored(scorer: Scorer, images: ImagePool, bars: Bars) -> Iterator[Scored]:
    """Score the test images batch by batch."""
    with bars("scoring test images", "image") as update:
        yield from image_batches(scorer, images.image, len(images.paths), progress=update)


def titled(bars: Bars, where: str) -> Bars:
    """Bars whose titles name the training."""

    def opened(title: str, unit: str, *, continues: bool = False) -> AbstractContextManager[Update]:
        return bars(f"{where} {title}", unit, continues=continues)

    return opened


# Costs


class AddedMemory:
    """How far memory rises in a `with` block above what it was before; bytes: set at its end.

    A CUDA device's memory, or else the process's own. What ran before in the process does not
    count.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "AddedMemory":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            give_back_freed_memory()
            self._before = self._peak = own_memory()
            self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._ended.set()
            self._sampler.join()
        self.bytes = self._peak - self._before

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, own_memory())


def own_memory() -> int:
    """Bytes of memory that only this process holds, or all it holds where that is not known."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def latency_ms(scorer: Scorer, images: ImagePool) -> float:
    """Median milliseconds to score one image that is in memory."""
    image, seconds = np.array(images.image(0))[None], list[float]()
    for _ in range(NUM_WARM + NUM_TIMED):
        started = time.perf_counter()
        scorer(image)
        seconds.append(time.perf_counter() - started)
    return 1000 * median(seconds[NUM_WARM:])


def device_name(device: torch.device) -> str:
    """The device as a reader knows it: a GPU's name, or the processor with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({platform.machine()}, {threads} thread{'s' * (threads > 1)})"

"""What a training and its detector cost: time, parameters, memory, latency."""

import gc
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import psutil
import torch

from detect.detector import Detector
from detect.packing import packed
from synth.base.memory import give_back_freed_memory
from synth.base.progress import Bars, Update

SAMPLE_SECONDS = 0.02
NUM_WARM, NUM_TIMED = 3, 15


class Stopwatch:
    """Bars that also measure how long the units under one title take; pass it on as `Bars`.

    What is done between two units counts, as checks are under --patience: no bar tells of them.
    """

    def __init__(self, bars: Bars, title: str) -> None:
        self.bars, self.title = bars, title
        self.seconds, self.units, self.done = 0.0, 0, 0

    @contextmanager
    def __call__(self, title: str, unit: str, *, continues: bool = False) -> Iterator[Update]:
        """As `Bars`. The first unit counts from when the bar opened."""
        with self.bars(title, unit, continues=continues) as update:
            if title != self.title:
                yield update
                return
            self.seconds, self.units, self.done = 0.0, 0, 0
            opened = time.perf_counter()

            def timed(done: int, total: int, terms: Mapping[str, float] | None = None, /) -> None:
                resumed = continues and self.units == 0
                self.units += 1 if resumed else done - self.done
                self.done = done
                self.seconds = time.perf_counter() - opened
                update(done, total, terms)

            yield timed

    def whole_seconds(self) -> float | None:
        """Seconds of all units at the speed of those seen; None where none was seen.

        After an interruption only some are seen. Units that were never done do not count, as after
        an early stop.
        """
        return self.seconds / self.units * self.done if self.units else None


class AddedMemory:
    """How far memory rises in a `with` block over what it was before; bytes: known at its end.

    A CUDA device's, or else the process's own, without the code that it reads from files; what ran
    before in the process moved a training's by up to 15 %.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "AddedMemory":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            give_back_freed_memory()
            self._before = self._peak = own_memory()
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._ended.set()
            self._watch.join()
        self.bytes = self._peak - self._before

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, own_memory())


def own_memory() -> int:
    """Bytes of memory that are this process's alone; with shared ones where they are not told."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)


def latency_ms(detector: Detector, size: tuple[int, int], device: torch.device) -> float:
    """Median milliseconds to score one image float32 [1, 3, H, W] on the device, as in use."""
    fast = packed(detector)
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = []
    for _ in range(NUM_WARM + NUM_TIMED):
        started = time.perf_counter()
        fast.predict(image).image.cpu()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 1000 * median(seconds[NUM_WARM:])


def count_parameters(detector: Detector) -> tuple[int, int]:
    """Numbers in the detector's state, and those of them that were trained."""
    total = sum(tensor.numel() for tensor in detector.state_dict().values())
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    return total, trained

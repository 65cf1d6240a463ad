"""Scoring in batches as large as the memory allows."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from detect.heatmap import Image
from detect.scoring import CPU_BATCH, Scored, Scorer
from synth.base.device import fitting_batch_size
from synth.base.memory import half, unless_out_of_memory
from synth.images import resize

NUM_PROBED = 2

CHUNK_PIXELS = 64_000_000
"""Of images that are decoded ahead, so that a batch of huge images does not fill the memory."""
T = TypeVar("T")

ScoreAndMap = tuple[float, NDArray[np.float32]]
"""An image's score, and its map at the scorer's size, float32 [h, w]."""


class BatchScorer:
    """Scores images of any size one after the other, in batches; their size changes speed only.

    size: (height, width) that images are brought to. batch_size: where memory does not suffice for
    so many after all, it is halved.
    """

    def __init__(self, scorer: Scorer, size: tuple[int, int], batch_size: int) -> None:
        self.scorer, self.size, self.batch_size = scorer, size, batch_size

    def __call__(self, images: Iterable[Image]) -> Iterator[ScoreAndMap]:
        """Score images uint8 [H, W, 3], each of a size of its own, lazily and in order."""
        resized = (resize(image, self.size) for image in images)
        waiting: list[Image] = []
        while True:
            waiting += itertools.islice(resized, max(0, self.batch_size - len(waiting)))
            batch = waiting[: self.batch_size]
            if not batch:
                return
            scored = unless_out_of_memory(self.score, batch)
            if scored is None:
                self.batch_size = half(len(batch))
                continue
            waiting = waiting[len(batch) :]
            yield from zip(scored.scores.tolist(), scored.maps, strict=True)

    def score(self, batch: Sequence[Image]) -> Scored:
        """Score a batch at the detector's size."""
        return self.scorer(np.stack(batch))


def measured_batch_size(scorer: Scorer, size: tuple[int, int], device: torch.device) -> int:
    """How many images to score at once: on a GPU what its memory holds, by the need of two."""
    if device.type != "cuda":
        return CPU_BATCH
    probe = [np.zeros((*size, 3), np.uint8)] * NUM_PROBED
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    if unless_out_of_memory(scorer, np.stack(probe)) is None:
        return 1
    needed = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    return fitting_batch_size(torch.cuda.mem_get_info(device)[0], needed / NUM_PROBED)


def chunks(items: Iterable[T], size: int, pixels_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Up to `size` items at a time, of no more than CHUNK_PIXELS together but for a single one."""
    chunk: list[T] = []
    pixels = 0
    for item in items:
        if chunk and (len(chunk) == size or pixels + pixels_of(item) > CHUNK_PIXELS):
            yield chunk
            chunk, pixels = [], 0
        chunk.append(item)
        pixels += pixels_of(item)
    if chunk:
        yield chunk

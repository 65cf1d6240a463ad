"""Images as networks take them, and many image files in memory."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synth.base.errors import UserError
from synth.base.progress import Bars
from synth.images import read_image, require_images, resize

CACHE_BYTES = 1 << 30
"""Decoded images kept in memory, over all parts of a source."""


def to_chw(image: NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def to_unit(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 in [0, 1]."""
    return images.float() / 255


def to_batch(images: Iterable[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """uint8 [H, W, 3] each -> float32 [N, 3, H, W] in [0, 1], on `device`."""
    return to_unit(torch.stack([to_chw(image) for image in images]).to(device))


class ImagePool:
    """Image files at one size; as many as fit into `cache_bytes` are kept decoded.

    All are decoded once, so that broken files are reported before long work: raises one UserError
    with their number and the first of them.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        size: tuple[int, int],
        bars: Bars,
        cache_bytes: int = CACHE_BYTES,
        title: str = "loading anomaly images",
    ) -> None:
        self.paths, self.size = tuple(paths), size
        image_bytes = size[0] * size[1] * 3
        self.kept = np.empty((min(len(paths), cache_bytes // image_bytes), *size, 3), np.uint8)
        try:
            with bars(title, "image") as update:
                for number, path in enumerate(paths):
                    image = resize(read_image(path), size)
                    if number < len(self.kept):
                        self.kept[number] = image
                    update(number + 1, len(paths))
        except UserError:
            with bars("checking images", "image") as update:
                require_images(paths, update)  # says how many are broken, not only the first
            raise

    def draw(self, rng: np.random.Generator, normal: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pick one image at random, all equally likely."""
        return self.image(int(rng.integers(len(self.paths))))

    def image(self, number: int) -> NDArray[np.uint8]:
        """Return one image, uint8 [H, W, 3]; do not write to it."""
        if number < len(self.kept):
            return self.kept[number]
        return resize(read_image(self.paths[number]), self.size)

"""Real defects, cut out of photographs by their masks: a few of them vary synthetic anomalies.

A photograph shows a product as the normal images do; it never counts as a test image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synth.base.errors import UserError
from synth.base.progress import Bars, no_bars
from synth.data.catalog import Category
from synth.data.records import mask_beside
from synth.images import list_images, read_image, read_mask, resize
from synth.pictures import Image, digest

SCALE, BRIGHTNESS = (0.8, 1.25), (0.9, 1.1)
"""Ranges of the factors by which a cut-out is changed."""

Mask = NDArray[np.bool_]
"""bool [H, W]."""


class Photograph(NamedTuple):
    """The file of an image with a defect, and that of its mask."""

    image: Path
    mask: Path


class Cutout(NamedTuple):
    """A defect in its bounding box: uint8 [h, w, 3] RGB, and its pixels, bool [h, w]."""

    image: Image
    mask: Mask


def find_photographs(folder: Path) -> list[Photograph]:
    """Pair images/x.png with masks/x.png; or, without `images`, t/x.png with ground_truth/t/x.png.

    A mask may also be called x_mask, and have another suffix. Raises UserError where there are no
    images, and for one without a mask.
    """
    images, truth = folder / "images", folder / "masks"
    if not images.is_dir():
        images, truth = folder, folder / "ground_truth"
    paths = [path for path in list_images(images, recursive=True) if truth not in path.parents]
    if not paths:
        raise UserError(
            f"--defects: no images in {images}; give a folder with images/x.png and masks/x.png, "
            "or <type>/x.png and ground_truth/<type>/x.png"
        )
    return [Photograph(path, mask_beside(path, truth / path.relative_to(images))) for path in paths]


def require_unseen(
    photographs: Sequence[Photograph], category: Category, bars: Bars = no_bars
) -> None:
    """Raise UserError, naming both files, where a photograph shows what a test image shows."""
    if not photographs:
        return
    shown = {_picture(photograph.image): photograph.image for photograph in photographs}
    with bars("comparing defects with test images", "image") as update:
        for done, record in enumerate(category.test, start=1):
            twin = shown.get(_picture(record.path))
            if twin is not None:
                raise UserError(
                    f"--defects: {twin} shows the same as the test image {record.path}; what is "
                    "trained on tests nothing: remove one of them"
                )
            update(done, len(category.test))


def _picture(path: Path) -> tuple[tuple[int, ...], str]:
    image = read_image(path)
    return image.shape, digest(image)


def read_cutout(photograph: Photograph, size: tuple[int, int]) -> Cutout:
    """Cut a defect out of its photograph, squeezed to `size` (height, width) as normal images are.

    All defects of one photograph are one cut-out. Raises UserError for unreadable files, a mask of
    another size, and one without a defect at `size`.
    """
    image = read_image(photograph.image)
    mask = resized_mask(read_mask(photograph.mask, image.shape[:2]), size)
    if not mask.any():
        raise UserError(
            f"{photograph.mask}: no defect is left of it at {size[0]} x {size[1]} px (height x "
            "width); mark the defect, give a larger --size, or remove it and its image"
        )
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Cutout(resize(image, size)[box].copy(), mask[box].copy())


def resized_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Resize a mask, bool [H, W]: a pixel counts where some of the defect falls on it."""
    return resize(mask * np.uint8(255), size) > 0


@dataclass(frozen=True)
class DefectDraw:
    """Draws a cut-out and varies it."""

    cutouts: Sequence[Cutout]

    def __call__(self, rng: np.random.Generator, normal: Image) -> Cutout:
        """Draw one."""
        return varied(self.cutouts[int(rng.integers(len(self.cutouts)))], rng)


def varied(cutout: Cutout, rng: np.random.Generator) -> Cutout:
    """Flip a cut-out along each axis or not, scale it by SCALE, brighten it by BRIGHTNESS."""
    axes = tuple(np.flatnonzero(rng.random(2) < 0.5).tolist())
    scale, brightness = rng.uniform(*SCALE), rng.uniform(*BRIGHTNESS)
    h, w = (max(1, round(scale * side)) for side in cutout.mask.shape)
    levels = resize(np.ascontiguousarray(np.flip(cutout.image, axes)), (h, w)) * brightness
    mask = resized_mask(np.ascontiguousarray(np.flip(cutout.mask, axes)), (h, w))
    return Cutout(np.clip(np.rint(levels), 0, 255).astype(np.uint8), mask)

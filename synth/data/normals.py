"""A category's normal images in memory: those to train on, and those held out."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from synth.base.errors import DataWarning, UserError
from synth.base.memory import free_memory
from synth.base.progress import Bars
from synth.data.catalog import Category, Record, held_out
from synth.data.foreground import EVERYTHING, MAX_FIT_IMAGES, ForegroundRule, foreground_for
from synth.data.options import Foreground
from synth.images import require_images
from synth.pictures import Images, digest, load_images


class Normals(NamedTuple):
    """Training images of one category, each uint8 [N, H, W, 3] RGB, beside their records.

    Nothing but a threshold or a check may be fitted to `held`.
    """

    category: Category
    fit_records: Sequence[Record]
    fit: Images
    held_records: Sequence[Record]
    held: Images

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.fit.shape[1:3]
        return height, width

    def to_json(self) -> dict[str, object]:
        """How many there are and what they show, so that continued work notices changed images."""
        return {
            "num_images": len(self.fit) + len(self.held),
            "digest": digest(self.fit),
            "held_out_digest": digest(self.held),
        }

    def foreground_rule(self, choice: Foreground = "auto") -> ForegroundRule:
        """The category's rule, from the table or fitted to a few of the images to train on."""
        if choice == "everything":
            return EVERYTHING
        few = [self.fit[n] for n in spread(len(self.fit))]
        return foreground_for(self.category.dataset, self.category.name, few)


def load_normals(category: Category, size: tuple[int, int], bars: Bars) -> Normals:
    """Load a category's training images at `size` (height, width); test images are not opened.

    Copies of a picture (equal pixels at `size`) stay together: they count as one image when images
    are held out, or a threshold would be set on what was trained on. Raises UserError for
    unreadable images, with their number, for fewer than two different ones, and where they do not
    fit into memory; gives a DataWarning for copies.
    """
    fit, held = held_out(category)
    images = load_readable([record.path for record in fit + held], size, bars)
    pictures = [digest(image) for image in images]
    if len(set(pictures)) < len(pictures):
        loaded = {record: n for n, record in enumerate(fit + held)}
        fit, held = held_out_together(category, {r: pictures[n] for r, n in loaded.items()})
        images = images[[loaded[record] for record in fit + held]]
    return Normals(category, fit, images[: len(fit)], held, images[len(fit) :])


def held_out_together(
    category: Category, pictures: Mapping[Record, str]
) -> tuple[list[Record], list[Record]]:
    """Split as `held_out`, over different pictures; copies go where the first of them goes.

    pictures: a fingerprint per training image. Raises UserError where all are one picture; gives a
    DataWarning that names the first copy.
    """
    firsts: dict[str, Record] = {}
    copies = [r for r in category.train if firsts.setdefault(pictures[r], r) is not r]
    copy, original = copies[0].path, firsts[pictures[copies[0]]].path
    if len(firsts) < 2:
        raise UserError(
            f"{category.name}: all {len(pictures)} training images show the same picture as "
            f"{original}; 2 different ones or more are needed: add normal images"
        )
    warnings.warn(
        f"{category.name}: {len(copies)} of {len(pictures)} training images are copies of others, "
        f"the first: {copy} of {original}; copies are held out together or not at all",
        DataWarning,
        stacklevel=2,
    )
    _, apart = held_out(replace(category, records=tuple(firsts.values())))
    held = {pictures[record] for record in apart}
    fit = [record for record in category.train if pictures[record] not in held]
    return fit, [record for record in category.train if pictures[record] in held]


def load_readable(paths: Sequence[Path], size: tuple[int, int], bars: Bars) -> Images:
    """Load image files at `size`: uint8 [N, H, W, 3].

    Raises UserError as `require_images` and `require_memory`.
    """
    require_memory(len(paths), size)
    try:
        with bars("loading images", "image") as update:
            return load_images(paths, size, update)
    except UserError:
        with bars("checking images", "image") as update:
            require_images(paths, update)  # says how many are broken, not only the first
        raise


def require_memory(num_images: int, size: tuple[int, int]) -> None:
    """Raise UserError where `num_images` at `size` (height, width) exceed the memory that is free.

    Allocating them would succeed, and the system would end the process half-way.
    """
    height, width = size
    needed, free = num_images * height * width * 3, free_memory()
    if needed > free:
        raise UserError(
            f"--size: {num_images} images of {height} x {width} px take {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB of memory are free; give a smaller --size or fewer images"
        )


def spread(count: int, most: int = MAX_FIT_IMAGES) -> list[int]:
    """Up to `most` of 0..count-1, evenly spread."""
    chosen = min(count, most)
    return [number * count // chosen for number in range(chosen)]

"""A category's normal images in memory: those to train on, and those held out."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from synth.catalog import Category, Record, held_out
from synth.config import Foreground
from synth.errors import UserError
from synth.foreground import EVERYTHING, MAX_FIT_IMAGES, ForegroundRule, foreground_for
from synth.images import require_images
from synth.pictures import Images, digest, load_images
from synth.progress import Bars


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

    Raises UserError for unreadable images, with their number, and for fewer than two images.
    """
    fit, held = held_out(category)
    images = load_readable([record.path for record in fit + held], size, bars)
    return Normals(category, fit, images[: len(fit)], held, images[len(fit) :])


def load_readable(paths: Sequence[Path], size: tuple[int, int], bars: Bars) -> Images:
    """Load image files at `size`: uint8 [N, H, W, 3]. Raises UserError as `require_images`."""
    try:
        with bars("loading images", "image") as update:
            return load_images(paths, size, update)
    except UserError:
        with bars("checking images", "image") as update:
            require_images(paths, update)  # says how many are broken, not only the first
        raise


def spread(count: int) -> list[int]:
    """Up to MAX_FIT_IMAGES of 0..count-1, evenly spread."""
    chosen = min(count, MAX_FIT_IMAGES)
    return [number * count // chosen for number in range(chosen)]

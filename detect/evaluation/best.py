"""The best of several moments of a training, judged by the test images: for comparison alone.

Many papers report the best of all checkpoints by the test images themselves, which flatters. Such
figures stand beside a detector's own, labelled; nothing is chosen by them.
"""

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

LABEL = "best on test (chosen on the test split; only for comparison with papers)"


class Moment(NamedTuple):
    """AUROCs after a number of steps, one per category; of pixels None where not all have masks."""

    step: int
    image_auroc: tuple[float, ...]
    pixel_auroc: tuple[float | None, ...]

    @property
    def image(self) -> float:
        """The mean over the categories."""
        return mean(self.image_auroc)

    @property
    def pixel(self) -> float | None:
        """The mean over the categories; None where any has none."""
        known = [value for value in self.pixel_auroc if value is not None]
        return mean(known) if len(known) == len(self.pixel_auroc) else None

    def of(self, number: int) -> "Moment":
        """One category's."""
        return Moment(self.step, (self.image_auroc[number],), (self.pixel_auroc[number],))


class Best(NamedTuple):
    """The highest figures of all moments and the first step of each; pixels' None without masks."""

    num_moments: int
    image_auroc: float
    image_step: int
    pixel_auroc: float | None
    pixel_step: int | None


def best_of(moments: Sequence[Moment]) -> Best:
    """The highest figures of one moment or more, each for itself, as papers take them."""
    image = max(moments, key=lambda moment: moment.image)
    pixels = [(value, moment.step) for moment in moments if (value := moment.pixel) is not None]
    pixel, step = max(pixels, key=lambda pair: pair[0]) if pixels else (None, None)
    return Best(len(moments), image.image, image.step, pixel, step)

"""The test images of a category and their masks, checked once, read again when needed."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synth.base.errors import UserError
from synth.base.progress import Bars
from synth.data.catalog import Category, Record
from synth.images import is_turned, read_graded_mask, read_image, read_mask

ALL_DEFECTS = ""  # all defect types together; no folder has this name


class TestSet(NamedTuple):
    """The test images of a category, all readable.

    shapes: (height, width) of each image and its mask. has_masks: whether every anomalous image has
    one. graded, empty, large: mask files with several levels, without a defect, and of a defect
    over most of the image. turned: images that EXIF turns and that have masks.
    """

    category: Category
    records: tuple[Record, ...]
    shapes: tuple[tuple[int, int], ...]
    has_masks: bool
    graded: tuple[Path, ...]
    empty: tuple[Path, ...]
    large: tuple[Path, ...] = ()
    turned: tuple[Path, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """The image files."""
        return [record.path for record in self.records]

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Whether each image is anomalous: by its folder, whatever its mask."""
        return np.array([record.is_anomalous for record in self.records])

    def mask(self, number: int) -> NDArray[np.bool_]:
        """Read an image's mask, bool [H, W]; empty for a normal image."""
        path = self.records[number].mask_path
        shape = self.shapes[number]
        return np.zeros(shape, np.bool_) if path is None else read_mask(path, shape)

    def indices(self, defect: str) -> list[int]:
        """Which images are of a defect type, of "good", or of ALL_DEFECTS."""
        return [
            number
            for number, record in enumerate(self.records)
            if record.defect == defect or (defect == ALL_DEFECTS and record.is_anomalous)
        ]

    @property
    def defects(self) -> list[str]:
        """The defect types, sorted."""
        return sorted({record.defect for record in self.records if record.is_anomalous})

    @property
    def normal(self) -> str:
        """What the normal images are called."""
        return next(record.defect for record in self.records if not record.is_anomalous)

    def cautions(self) -> list[str]:
        """Say what is odd about the masks and how they are read; often nothing."""
        notes: list[str] = []
        if not self.has_masks:
            notes.append(
                "not every anomalous test image has a mask: figures are of whole images only"
            )
        if self.graded:
            notes.append(
                f"{len(self.graded)} masks have several levels (soft edges, or labels), the first: "
                f"{self.graded[0]}; every pixel that is not 0 counts as defect"
            )
        if self.empty and self.has_masks:
            notes.append(
                f"{len(self.empty)} masks of anomalous images are empty, the first: "
                f"{self.empty[0]}; the images count as anomalous, all their pixels as normal"
            )
        if self.large:
            notes.append(
                f"{len(self.large)} masks cover more than half of their image, the first: "
                f"{self.large[0]}; what is not 0 counts as defect: invert them if black is meant"
            )
        if self.turned:
            notes.append(
                f"{len(self.turned)} test images with masks are turned by their EXIF orientation, "
                f"the first: {self.turned[0]}; their masks must be drawn on the images as shown"
            )
        return notes


def listing_digest(records: Sequence[Record]) -> str:
    """A fingerprint of which images these are, by name and size; none is opened."""
    listing = [
        f"{record.split} {record.defect} {record.path.name} {record.path.stat().st_size}"
        for record in records
    ]
    return hashlib.sha256(os.fsencode("\n".join(listing))).hexdigest()[:16]


def require_both_labels(category: Category) -> None:
    """Raise UserError unless the test split has normal and anomalous images."""
    anomalous = sum(record.is_anomalous for record in category.test)
    if not 0 < anomalous < len(category.test):
        raise UserError(
            f"{category.name}: the test images are {len(category.test) - anomalous} normal and "
            f"{anomalous} anomalous; an evaluation needs both (test/good and test/<defect>); "
            "`detect predict` needs neither"
        )


def open_test_set(category: Category, bars: Bars) -> TestSet:
    """Read every test image and mask once, before long work.

    Raises UserError for a single label, an unreadable file, and a mask of another size than its
    image.
    """
    require_both_labels(category)
    shapes: list[tuple[int, int]] = []
    graded: list[Path] = []
    empty: list[Path] = []
    large: list[Path] = []
    turned: list[Path] = []
    with bars("checking test images", "image") as update:
        for done, record in enumerate(category.test, start=1):
            height, width = read_image(record.path).shape[:2]
            shapes.append((height, width))
            if record.mask_path is not None:
                mask, is_graded = read_graded_mask(record.mask_path, shapes[-1])
                graded += [record.mask_path] * is_graded
                empty += [record.mask_path] * (not mask.any())
                large += [record.mask_path] * bool(mask.mean() > 0.5)
                turned += [record.path] * is_turned(record.path)
            update(done, len(category.test))
    has_masks = all(record.mask_path or not record.is_anomalous for record in category.test)
    return TestSet(
        category,
        category.test,
        tuple(shapes),
        has_masks,
        *map(tuple, (graded, empty, large, turned)),
    )

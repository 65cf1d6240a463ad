"""What a layout is read into: image records of a category; and the pieces readers share."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from synth.base.errors import UserError
from synth.base.progress import Bars
from synth.images import SUFFIXES, list_images

GOOD = "good"

Split = Literal["train", "held_out", "test"]
"""held_out: normal training images that the layout itself holds out."""


@dataclass(frozen=True)
class Record:
    """One image file; `defect` is "good" for a normal image, `mask_path` None where none exists.

    A mask_path that is a folder stands for the union of the masks in it.
    """

    path: Path
    split: Split
    defect: str
    mask_path: Path | None

    @property
    def is_anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect != GOOD


@dataclass(frozen=True)
class Category:
    """The records of one category, training first, each split sorted by defect and path."""

    dataset: str
    name: str
    records: tuple[Record, ...]

    @property
    def train(self) -> tuple[Record, ...]:
        """The normal training images, those to hold out among them."""
        return tuple(r for r in self.records if r.split != "test" and not r.is_anomalous)

    @property
    def test(self) -> tuple[Record, ...]:
        """The test images, normal and anomalous; may be empty."""
        return tuple(record for record in self.records if record.split == "test")


def existing_folder(root: Path | None) -> Path:
    """Return `root`. Raises UserError where none is given or none is there."""
    if root is None:
        raise UserError("root: this layout needs a folder; give --root")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; check its name")
    return root


def as_it_lies(root: Path, category: str, bars: Bars) -> Path:
    """Nothing has to be prepared: the images lie below `root`."""
    return root


class Reader(NamedTuple):
    """A layout: the categories of a root, and the records of one.

    find_root: checks or replaces what --root says. prepare: writes what is not on disk yet and says
    where `records` finds it.
    """

    categories: Callable[[Path], list[str]]
    records: Callable[[Path, str], list[Record]]
    find_root: Callable[[Path | None], Path] = existing_folder
    prepare: Callable[[Path, str, Bars], Path] = as_it_lies


# Pieces of readers


def list_test(
    test: Path, truth: Path, find_mask: Callable[[Path, Path], Path | None], good: str = GOOD
) -> list[Record]:
    """List test/<type>/, with masks by `find_mask(image, truth/<type>/<same place>)`.

    good: the type whose images are normal, and so are those of other words for it, such as OK.
    """
    if not test.is_dir():
        return []
    loose = list_images(test)
    if loose:
        raise UserError(f"{loose[0]}: loose in {test}; move it to test/{good} or test/<defect>")
    records: list[Record] = []
    for kind in subfolders(test):
        if kind == truth:
            continue
        for path in list_images(kind, recursive=True):
            place = truth / path.relative_to(test)
            if kind.name == good or is_good(kind.name):
                records.append(Record(path, "test", GOOD, None))
            else:
                records.append(Record(path, "test", kind.name, find_mask(path, place)))
    return records


def require_mask(image: Path, mask: Path) -> Path:
    """Return `mask`. Raises UserError, naming both files, where it does not exist."""
    if not mask.is_file():
        raise UserError(f"{image}: its mask {mask} is missing; add it or remove the image")
    return mask


def mask_beside(image: Path, place: Path) -> Path:
    """Return the mask `<stem>` or `<stem>_mask`, of any image suffix, in the folder of `place`.

    Raises UserError, naming both files, where there is none.
    """
    stems = (image.stem, f"{image.stem}_mask")
    names = [stem + suffix for stem in stems for suffix in SUFFIXES]
    found = (place.with_name(name) for name in names if place.with_name(name).is_file())
    return next(found, None) or require_mask(image, place.with_name(f"{image.stem}.png"))


def require_masks(image: Path, folder: Path) -> Path:
    """Return `folder`, which holds masks. Raises UserError, naming image and folder, without."""
    if not folder.is_dir() or not list_images(folder):
        raise UserError(f"{image}: its masks {folder}/*.png are missing; unpack the archive again")
    return folder


GOOD_WORDS = frozenset(
    {
        "good", "ok", "normal", "normals", "pass", "passed", "healthy", "gut", "io", "defectfree",
        "nodefect", "nodefects",
    }
)  # fmt: skip
BAD_WORDS = frozenset(
    {
        "ng", "nok", "bad", "defect", "defects", "defective", "faulty", "fault", "abnormal",
        "anomaly", "anomalies", "anomalous", "fail", "failed", "reject", "rejected", "nio", "ko",
    }
)  # fmt: skip
MASK_WORDS = frozenset({"mask", "masks", "gt", "groundtruth", "label", "labels", "annotations"})
SUFFIX_WORDS = ("images", "image", "img", "dir", "folder", "samples", "parts")


def bare_word(name: str) -> str:
    """A folder's name without case, separators and words such as "images"."""
    parts = [part for part in re.split(r"[^a-z]+", name.casefold()) if part]
    return "".join(part for part in parts if part not in SUFFIX_WORDS) or "".join(parts)


def is_good(name: str) -> bool:
    """Whether a folder's name says that its images are normal."""
    return bare_word(name) in GOOD_WORDS


def require_unlabelled(folder: Path, paths: Sequence[Path]) -> None:
    """Raise UserError where names of folders say that some of these images are not normal.

    That is so where one is called after defects or masks, or where some are in a folder called
    after good products and some are not.
    """
    counts = Counter(path.relative_to(folder).parts[:-1] for path in paths)
    words = {parts: {bare_word(part) for part in parts} for parts in counts}
    wrong = [parts for parts, names in words.items() if names & (BAD_WORDS | MASK_WORDS)]
    good = [parts for parts, names in words.items() if names & GOOD_WORDS]
    if not wrong and (not good or len(good) == len(counts)):
        return

    def listed(chosen: Iterable[tuple[str, ...]]) -> str:
        return ", ".join(f"{'/'.join(parts) or '.'} ({counts[parts]})" for parts in chosen)

    others = [parts for parts in counts if parts not in good]
    right = f", {listed(good)} to be normal ones" if good else ""
    way = folder.joinpath(*good[0]) if len(good) == 1 else f"{folder}/<the normal ones>"
    raise UserError(
        f"{folder}: by their names {listed(wrong or others)} seem to be no normal images{right}; "
        f"give --root {way}, or move normal ones to train/good and others to test/<defect>"
    )


def normals_in(folder: Path, split: Split) -> list[Record]:
    """The images below `folder`, all normal. Raises UserError where there are none.

    Raises UserError as `require_unlabelled`, too.
    """
    paths = list_images(folder, recursive=True)
    require_unlabelled(folder, paths)
    return require_some([Record(path, split, GOOD, None) for path in paths], folder)


def require_some(records: list[Record], folder: Path) -> list[Record]:
    """Return `records`. Raises UserError, naming `folder`, where there are none."""
    if not records:
        raise UserError(f"{folder}: no images; allowed are files named *{', *'.join(SUFFIXES)}")
    return records


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in `folder`, by name."""
    visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sorted(entry for entry in visible if entry.is_dir())


def refuse_others(folder: Path, allowed: set[str], rule: str) -> None:
    """Raise where `folder` has images outside the `allowed` ones: nothing is skipped in silence."""
    others = [entry for entry in subfolders(folder) if entry.name not in allowed]
    stray = [path for other in others for path in list_images(other, recursive=True)]
    stray += list_images(folder)
    if stray:
        raise UserError(f"{stray[0]}: would not be used; {rule}: move or remove it")

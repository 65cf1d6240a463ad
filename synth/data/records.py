"""What a layout is read into: image records of a category; and the pieces readers share."""

from collections.abc import Callable
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
    """One image file; `defect` is "good" for a normal image, `mask_path` None where none exists."""

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
        raise UserError(f"{root}: no such folder; check --root")
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
    folder: Path, find_mask: Callable[[Path, Path], Path | None], good: str = GOOD
) -> list[Record]:
    """List test/<type>/, with masks by `find_mask(image, ground_truth/<type>/<same place>)`.

    good: the type whose images are normal.
    """
    test = folder / "test"
    if not test.is_dir():
        return []
    loose = list_images(test)
    if loose:
        raise UserError(f"{loose[0]}: loose in {test}; move it to test/{good} or test/<defect>")
    records: list[Record] = []
    for kind in subfolders(test):
        truth = folder / "ground_truth" / kind.name
        for path in list_images(kind, recursive=True):
            place = truth / path.relative_to(kind)
            if kind.name == good:
                records.append(Record(path, "test", GOOD, None))
            else:
                records.append(Record(path, "test", kind.name, find_mask(path, place)))
    return records


def require_mask(image: Path, mask: Path) -> Path:
    """Return `mask`. Raises UserError, naming both files, where it does not exist."""
    if not mask.is_file():
        raise UserError(f"{image}: its mask {mask} is missing; add it or remove the image")
    return mask


def normals_in(folder: Path, split: Split) -> list[Record]:
    """The images below `folder`, all normal. Raises UserError where there are none."""
    paths = list_images(folder, recursive=True)
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

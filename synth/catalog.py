"""Dataset layouts on disk, read into records: path, split, defect, mask.

Listing opens no image; `synth.images.require_images` checks the files before long work.
A new layout is one function for its categories, one for its records, and a row in READERS.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from synth import textures
from synth.errors import UserError
from synth.images import SUFFIXES, list_images

GOOD = "good"
MTD_CATEGORY = "magnetic_tile"
MTD_DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")
MTD_TRAIN_LIST = "train_filenames.txt"  # the CS-Flow authors' split: 761 names, one a line
MTD_TRAIN_SHARE = 4 / 5  # where that list is absent

Split = Literal["train", "test"]


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
        """The normal training images."""
        return tuple(r for r in self.records if r.split == "train" and not r.is_anomalous)

    @property
    def test(self) -> tuple[Record, ...]:
        """The test images, normal and anomalous; may be empty."""
        return tuple(record for record in self.records if record.split == "test")


class Reader(NamedTuple):
    """A layout: the categories of a root, the records of one, the root when none is given."""

    categories: Callable[[Path], list[str]]
    records: Callable[[Path, str], list[Record]]
    default_root: Callable[[], Path] | None = None


# Opening


def categories(dataset: str, root: Path | None) -> list[str]:
    """List the categories below `root` by name. Raises UserError as `open_category`."""
    reader = _reader(dataset)
    return reader.categories(_existing_root(reader, dataset, root))


def open_category(dataset: str, root: Path | None, category: str | None = None) -> Category:
    """List the images of one category.

    `dataset` is a key of READERS; `root` may be None for "textures" only; `category` may be None
    where there is only one. For "folder" with a single product, `category` is a name of your choice
    (default: the folder's). Raises UserError for an unknown dataset, a missing root or category, no
    training images, a missing mask ("folder" may have no masks at all for a defect), and images or
    folders in places where the layout has no meaning for them.
    """
    reader = _reader(dataset)
    root = _existing_root(reader, dataset, root)
    names = reader.categories(root)
    if category is None and len(names) > 1:
        raise UserError(f"category: {root} holds several; choose one of {', '.join(names)}")
    free_name = dataset == "folder" and len(names) == 1
    if category is not None and category not in names and not free_name:
        raise UserError(
            f"category: no {category!r} in {root}; there are: {', '.join(names) or 'none'}"
        )
    if not names:
        raise UserError(
            f"{root}: no category of layout {dataset!r}; check --root, or use the layout 'folder'"
        )
    name = names[0] if category is None else category
    return Category(dataset, name, tuple(reader.records(root, name)))


def held_out(
    category: Category, fraction: float = 0.1, seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """Split the training normals into (fit, held-out), each in the category's order.

    Membership follows a hash of (seed, file name): moving the root changes nothing, and new files
    move few. Held out are round(fraction * N), at least 2 where N >= 4 (1 where N is 2 or 3), and
    never all. Raises UserError for a fraction outside (0, 1) and for fewer than 2 images.
    """
    train = category.train
    if not 0 < fraction < 1:
        raise UserError(f"fraction: got {fraction}; choose a number between 0 and 1, such as 0.1")
    if len(train) < 2:
        raise UserError(
            f"{category.name}: got {len(train)} training image; holding out needs 2 or more"
        )
    count = min(max(round(fraction * len(train)), 2 if len(train) >= 4 else 1), len(train) - 1)
    held = set(sorted(train, key=lambda record: _rank(seed, record.path.name))[:count])
    return [r for r in train if r not in held], [r for r in train if r in held]


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def _reader(dataset: str) -> Reader:
    if dataset not in READERS:
        raise UserError(f"dataset: no layout {dataset!r}; allowed: {', '.join(READERS)}")
    return READERS[dataset]


def _existing_root(reader: Reader, dataset: str, root: Path | None) -> Path:
    if reader.default_root is not None:
        return reader.default_root() if root is None else root
    if root is None:
        raise UserError(f"root: the layout {dataset!r} needs a folder; give --root")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; check --root")
    return root


# Layout "folder": any folder of normal images


def _folder_categories(root: Path) -> list[str]:
    if _has_split(root):
        return [root.resolve().name]
    products = [folder.name for folder in _folders(root) if _has_split(folder)]
    return products or [root.resolve().name]


def _folder_records(root: Path, name: str) -> list[Record]:
    several = not _has_split(root) and _has_split(root / name)
    folder = root / name if several else root
    train = _folder_train(folder)
    return train + _test_records(folder, _optional_mask)


def _has_split(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / GOOD).is_dir()


def _folder_train(folder: Path) -> list[Record]:
    """Take the first there is of train/good, train, good, and the folder itself."""
    train = folder / "train"
    if (train / GOOD).is_dir():
        _only(train, {GOOD}, f"training images must be normal, in {train / GOOD}")
        return _normals(train / GOOD, "train")
    if train.is_dir():
        return _normals(train, "train")
    if (folder / GOOD).is_dir():
        _only(folder, {GOOD, "test", "ground_truth"}, f"defects belong in {folder / 'test'}/<type>")
        return _normals(folder / GOOD, "train")
    return _loose_normals(folder)


def _loose_normals(folder: Path) -> list[Record]:
    apart = {folder / "test", folder / "ground_truth"}
    paths = [path for path in list_images(folder, recursive=True) if not apart & {*path.parents}]
    for path in paths:
        kind = {"train", "test", "ground_truth"} & {*path.relative_to(folder).parts[:-1]}
        if kind:
            raise UserError(
                f"{path}: in a {kind.pop()!r} folder deep inside {folder}; give the folder above it"
            )
    return _nonempty([Record(path, "train", GOOD, None) for path in paths], folder)


# Layout "mvtec": <category>/train/good, test/<type>, ground_truth/<type>/<stem>_mask.png


def _mvtec_categories(root: Path) -> list[str]:
    if (root / "train" / GOOD).is_dir():
        return [root.resolve().name]
    return [folder.name for folder in _folders(root) if (folder / "train" / GOOD).is_dir()]


def _mvtec_records(root: Path, name: str) -> list[Record]:
    folder = root if (root / "train" / GOOD).is_dir() else root / name
    train = folder / "train"
    _only(train, {GOOD}, f"training images must be normal, in {train / GOOD}")
    return _normals(train / GOOD, "train") + _test_records(folder, _mvtec_mask)


# Layout "mtd": the public Magnetic Tile archive, MT_<Type>/Imgs/*.jpg with *.png masks beside


def _mtd_categories(root: Path) -> list[str]:
    return [MTD_CATEGORY] if (root / "MT_Free" / "Imgs").is_dir() else []


def _mtd_records(root: Path, name: str) -> list[Record]:
    free = _mtd_images(root, "free")
    train_names = _mtd_train_names(root, free)
    normals = [
        Record(path, "train" if path.name in train_names else "test", GOOD, None) for path in free
    ]
    defects = [
        Record(path, "test", defect, _require_mask(path, path.with_suffix(".png")))
        for defect in MTD_DEFECTS
        for path in _mtd_images(root, defect)
    ]
    train = [record for record in normals if record.split == "train"]
    return train + [record for record in normals if record.split == "test"] + defects


def _mtd_images(root: Path, kind: str) -> list[Path]:
    folder = root / f"MT_{kind.capitalize()}" / "Imgs"
    paths = [path for path in list_images(folder) if path.suffix.lower() == ".jpg"]
    if not paths:
        raise UserError(f"{folder}: no .jpg image; unpack the archive again")
    return paths


def _mtd_train_names(root: Path, free: Sequence[Path]) -> set[str]:
    names = {path.name for path in free}
    listing = root / MTD_TRAIN_LIST
    if not listing.is_file():
        order = np.random.default_rng(0).permutation(sorted(names))
        return set(order[: round(MTD_TRAIN_SHARE * len(names))].tolist())
    listed = set(listing.read_text(encoding="utf-8").split())
    absent = sorted(listed - names)
    if absent or not listed:
        first = f", the first: {absent[0]}" if absent else ""
        raise UserError(
            f"{listing}: {len(absent)} of its {len(listed)} names are not in MT_Free/Imgs{first}; "
            "unpack the archive again, or remove the list for a seeded 4/5 split"
        )
    return listed


# Layout "textures": written on this machine when first opened


def _textures_categories(root: Path) -> list[str]:
    return sorted(textures.PHOTOGRAPHS)


def _textures_records(root: Path, name: str) -> list[Record]:
    textures.write_textures(root, name)
    return _mvtec_records(root, name)


READERS: dict[str, Reader] = {
    "folder": Reader(_folder_categories, _folder_records),
    "mvtec": Reader(_mvtec_categories, _mvtec_records),
    "mtd": Reader(_mtd_categories, _mtd_records),
    "textures": Reader(_textures_categories, _textures_records, textures.default_root),
}


# Shared pieces


def _test_records(folder: Path, find_mask: Callable[[Path, Path], Path | None]) -> list[Record]:
    """List test/<type>/, with masks by `find_mask(image, ground_truth/<type>/<same place>)`."""
    test = folder / "test"
    if not test.is_dir():
        return []
    loose = list_images(test)
    if loose:
        raise UserError(f"{loose[0]}: loose in {test}; move it to test/{GOOD} or test/<defect>")
    records: list[Record] = []
    for kind in _folders(test):
        truth = folder / "ground_truth" / kind.name
        for path in list_images(kind, recursive=True):
            place = truth / path.relative_to(kind)
            mask = None if kind.name == GOOD else find_mask(path, place)
            records.append(Record(path, "test", kind.name, mask))
    return records


def _mvtec_mask(image: Path, place: Path) -> Path | None:
    return _require_mask(image, place.with_name(f"{image.stem}_mask.png"))


def _optional_mask(image: Path, place: Path) -> Path | None:
    """`<stem>` or `<stem>_mask` with any image suffix; None where its folder has no mask at all."""
    if not place.parent.is_dir():
        return None
    stems = (image.stem, f"{image.stem}_mask")
    for name in (stem + suffix for stem in stems for suffix in SUFFIXES):
        if place.with_name(name).is_file():
            return place.with_name(name)
    return _require_mask(image, place.with_name(f"{image.stem}.png"))


def _require_mask(image: Path, mask: Path) -> Path:
    if not mask.is_file():
        raise UserError(f"{image}: its mask {mask} is missing; add it or remove the image")
    return mask


def _normals(folder: Path, split: Split) -> list[Record]:
    paths = list_images(folder, recursive=True)
    return _nonempty([Record(path, split, GOOD, None) for path in paths], folder)


def _nonempty(records: list[Record], folder: Path) -> list[Record]:
    if not records:
        raise UserError(f"{folder}: no images; allowed are files named *{', *'.join(SUFFIXES)}")
    return records


def _folders(folder: Path) -> list[Path]:
    visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sorted(entry for entry in visible if entry.is_dir())


def _only(folder: Path, allowed: set[str], rule: str) -> None:
    """Raise where `folder` has images outside the `allowed` ones: nothing is skipped in silence."""
    others = [entry for entry in _folders(folder) if entry.name not in allowed]
    stray = [path for other in others for path in list_images(other, recursive=True)]
    stray += list_images(folder)
    if stray:
        raise UserError(f"{stray[0]}: would not be used; {rule}: move or remove it")

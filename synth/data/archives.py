"""Published archives as they are unpacked: BTAD, Magnetic Tile Defects, DAGM 2007."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from synth.base.errors import UserError
from synth.data.records import (
    GOOD,
    Reader,
    Record,
    Split,
    list_test,
    normals_in,
    refuse_others,
    require_mask,
    subfolders,
)
from synth.images import list_images

MTD_CATEGORY = "magnetic_tile"
MTD_DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")
MTD_TRAIN_LIST = "train_filenames.txt"  # the CS-Flow authors' split: 761 names, one a line
MTD_TRAIN_SHARE = 4 / 5  # where that list is absent
DAGM_LABELS = "Labels.txt"
DAGM_FIELDS = 5  # number, whether defective, image, a further flag, label image or 0

# Layout "btad": <category>/train/ok, test/ok, test/ko, ground_truth/ko


def two_sided_records(folder: Path, good: str, bad: str) -> list[Record]:
    """List train/<good>, test/<good> and test/<bad>, with masks in ground_truth/<bad>.

    A mask is a PNG or a BMP of its image's name. Raises UserError as `open_category`.
    """
    train = folder / "train" / good
    refuse_others(folder / "train", {good}, f"training images must be normal, in {train}")
    if (folder / "test").is_dir():
        refuse_others(folder / "test", {good, bad}, f"test images lie in {good} or {bad}")
    test = list_test(folder / "test", folder / "ground_truth", _png_or_bmp_mask, good)
    return normals_in(train, "train") + test


def _png_or_bmp_mask(image: Path, place: Path) -> Path:
    bmp = place.with_suffix(".bmp")
    return bmp if bmp.is_file() else require_mask(image, place.with_suffix(".png"))


def _btad_categories(root: Path) -> list[str]:
    if (root / "train" / "ok").is_dir():
        return [root.resolve().name]
    return [folder.name for folder in subfolders(root) if (folder / "train" / "ok").is_dir()]


def _btad_records(root: Path, name: str) -> list[Record]:
    folder = root if (root / "train" / "ok").is_dir() else root / name
    return two_sided_records(folder, "ok", "ko")


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
        Record(path, "test", defect, require_mask(path, path.with_suffix(".png")))
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


# Layout "dagm": Class<n>/Train and Test, each with Label/Labels.txt and NNNN_label.PNG


class _DagmRow(NamedTuple):
    image: str
    label: str | None


def _dagm_categories(root: Path) -> list[str]:
    return [folder.name for folder in subfolders(root) if _dagm_folder(folder) is not None]


def _dagm_folder(folder: Path) -> Path | None:
    """Find Train: in Class1, or in Class1/Class1 where each archive was unpacked on its own."""
    for place in (folder, folder / folder.name):
        if (place / "Train").is_dir():
            return place
    return None


def _dagm_records(root: Path, name: str) -> list[Record]:
    folder = _dagm_folder(root / name)
    assert folder is not None
    refuse_others(folder, {"Train", "Test"}, "images lie in Train and Test")
    train = _dagm_split(folder / "Train", "train")
    normal = [record for record in train if not record.is_anomalous]
    if not normal:
        raise UserError(f"{folder / 'Train'}: no normal image; unpack the archive again")
    defective = [record for record in train if record.is_anomalous]  # no training uses them
    has_test = (folder / "Test").is_dir()
    return normal + defective + (_dagm_split(folder / "Test", "test") if has_test else [])


def _dagm_split(folder: Path, split: Split) -> list[Record]:
    labels = folder / "Label"
    loose = {path.name: path for path in list_images(folder)}
    for other in subfolders(folder):
        if other != labels:
            refuse_others(other, set(), f"images lie in {folder} itself")
    rows = _dagm_rows(labels / DAGM_LABELS)
    unlisted = sorted(loose.keys() - {row.image for row in rows})
    if unlisted:
        raise UserError(f"{folder / unlisted[0]}: not in {labels / DAGM_LABELS}; remove it")
    records: list[Record] = []
    for row in sorted(rows):
        if row.image not in loose:
            raise UserError(
                f"{folder / row.image}: missing, though {labels / DAGM_LABELS} lists it; "
                "unpack the archive again"
            )
        path = loose[row.image]
        mask = None if row.label is None else require_mask(path, labels / row.label)
        records.append(Record(path, split, GOOD if mask is None else "defect", mask))
    return records


def _dagm_rows(path: Path) -> list[_DagmRow]:
    """Read lines such as `576 1 0576.PNG 1 0576_label.PNG`, below a line with one number."""
    if not path.is_file():
        raise UserError(f"{path}: missing; it says which images are normal: unpack again")
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    rows: list[_DagmRow] = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if len(fields) <= 1:
            continue
        marked = len(fields) == DAGM_FIELDS and (fields[1], fields[4] != "0")
        if marked not in (("0", False), ("1", True)):
            raise UserError(
                f"{path}: line {number} is {line!r}, expected 'NUMBER 0 IMAGE 0 0' or 'NUMBER 1 "
                "IMAGE 1 LABEL'; unpack the archive again"
            )
        rows.append(_DagmRow(fields[2], fields[4] if marked == ("1", True) else None))
    return rows


BTAD = Reader(_btad_categories, _btad_records)
MTD = Reader(_mtd_categories, _mtd_records)
DAGM = Reader(_dagm_categories, _dagm_records)

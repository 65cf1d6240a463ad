"""Layouts of published archives, as they are unpacked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from synth.errors import UserError
from synth.images import list_images
from synth.records import GOOD, Reader, Record, require_mask

MTD_CATEGORY = "magnetic_tile"
MTD_DEFECTS = ("blowhole", "break", "crack", "fray", "uneven")
MTD_TRAIN_LIST = "train_filenames.txt"  # the CS-Flow authors' split: 761 names, one a line
MTD_TRAIN_SHARE = 4 / 5  # where that list is absent

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


MTD = Reader(_mtd_categories, _mtd_records)

"""The layouts `--dataset` can name.

A new layout is one function for its categories, one for its records, and a row in READERS.
"""

import os
import warnings
from dataclasses import replace
from pathlib import Path

from synth.base.errors import DataWarning, UserError
from synth.base.progress import Bars
from synth.data import textures
from synth.data.archives import BTAD, DAGM, MTD
from synth.data.hub_data import hub_categories, write_hub_dataset
from synth.data.real_iad import REAL_IAD
from synth.data.records import (
    GOOD,
    Reader,
    Record,
    Split,
    list_test,
    mask_beside,
    normals_in,
    refuse_others,
    require_mask,
    require_masks,
    require_some,
    require_unlabelled,
    subfolders,
)
from synth.data.visa import VISA
from synth.images import list_images
from synth.sia.format import HEADER_FILE

# Layout "folder": any folder of normal images


def _folder_categories(root: Path) -> list[str]:
    if _has_split(root):
        return [root.resolve().name]
    products = [folder.name for folder in subfolders(root) if _is_product(folder)]
    return products or [root.resolve().name]


def _folder_records(root: Path, name: str) -> list[Record]:
    several = not _has_split(root) and _is_product(root / name)
    folder = root / name if several else root
    train = _folder_train(folder)
    return train + list_test(folder / "test", folder / "ground_truth", _optional_mask)


def folders_read(dataset: str, root: Path, records: list[Record]) -> set[Path]:
    """The folders in which a new image would join the records: those in `root`, or all of it."""
    tops = {root / record.path.relative_to(root).parts[0] for record in records}
    loose = not _has_split(root) and not any(map(_is_product, tops))
    return {root} if dataset == "folder" and (loose or root / GOOD in tops) else tops


def _has_split(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / GOOD).is_dir()


def _is_product(folder: Path) -> bool:
    """Whether a folder in the root is a product of its own; test/good is no reason."""
    return folder.name not in ("test", "ground_truth") and _has_split(folder)


def _folder_train(folder: Path) -> list[Record]:
    """Take the first there is of train/good, train, good, and the folder itself."""
    train = folder / "train"
    if (train / GOOD).is_dir():
        refuse_others(train, {GOOD}, f"training images must be normal, in {train / GOOD}")
        return normals_in(train / GOOD, "train")
    if train.is_dir():
        return normals_in(train, "train")
    if (folder / GOOD).is_dir():
        rule = f"defects belong in {folder / 'test'}/<type>"
        refuse_others(folder, {GOOD, "test", "ground_truth"}, rule)
        return normals_in(folder / GOOD, "train")
    return _loose_normals(folder)


def _loose_normals(folder: Path) -> list[Record]:
    anomalies = next(folder.rglob(HEADER_FILE), None)
    if anomalies is not None:
        raise UserError(
            f"{anomalies.parent}: an SIA folder, whose images show anomalies; give normal images"
        )
    apart = {folder / "test", folder / "ground_truth"}
    paths = [path for path in list_images(folder, recursive=True) if not apart & {*path.parents}]
    for path in paths:
        kind = {"train", "test", "ground_truth"} & {*path.relative_to(folder).parts[:-1]}
        if kind:
            raise UserError(
                f"{path}: in a {kind.pop()!r} folder deep inside {folder}; give the folder above it"
            )
    require_unlabelled(folder, paths)
    return require_some([Record(path, "train", GOOD, None) for path in paths], folder)


def _optional_mask(image: Path, place: Path) -> Path | None:
    """The mask as `mask_beside` finds it; None where its folder has no mask at all."""
    return mask_beside(image, place) if place.parent.is_dir() else None


# Layout "mvtec": <category>/train/good, test/<type>, ground_truth/<type>/<stem>_mask.png


def _mvtec_categories(root: Path) -> list[str]:
    if (root / "train" / GOOD).is_dir():
        return [root.resolve().name]
    return [folder.name for folder in subfolders(root) if (folder / "train" / GOOD).is_dir()]


def _mvtec_records(root: Path, name: str) -> list[Record]:
    folder = _mvtec_folder(root, name)
    train = _only_good(folder / "train", "train")
    return train + list_test(folder / "test", folder / "ground_truth", _mvtec_mask)


def _mvtec_folder(root: Path, name: str) -> Path:
    return root if (root / "train" / GOOD).is_dir() else root / name


def _only_good(folder: Path, split: Split) -> list[Record]:
    refuse_others(folder, {GOOD}, f"training images must be normal, in {folder / GOOD}")
    return normals_in(folder / GOOD, split)


def _mvtec_mask(image: Path, place: Path) -> Path | None:
    return require_mask(image, place.with_name(f"{image.stem}_mask.png"))


# Layout "loco": as MVTec, with validation/good and a folder of masks an image


def _loco_records(root: Path, name: str) -> list[Record]:
    folder = _mvtec_folder(root, name)
    test = list_test(folder / "test", folder / "ground_truth", _loco_masks)
    return _train_and_validation(folder) + test


def _train_and_validation(folder: Path) -> list[Record]:
    """The publishers' validation images are normal: they are the layout's own held-out ones."""
    train = _only_good(folder / "train", "train")
    return train + _only_good(folder / "validation", "held_out")


def _loco_masks(image: Path, place: Path) -> Path:
    return require_masks(image, place.with_suffix(""))


# Layout "mvtec-ad-2": train, validation, test_public; the private tests have no labels


def _ad2_records(root: Path, name: str) -> list[Record]:
    folder = _mvtec_folder(root, name)
    test = folder / "test_public"
    _tell_of_unlabelled(folder)
    return _train_and_validation(folder) + list_test(test, test / "ground_truth", _mvtec_mask)


def _tell_of_unlabelled(folder: Path) -> None:
    present = [p for p in (folder / "test_private", folder / "test_private_mixed") if p.is_dir()]
    count = sum(len(list_images(private)) for private in present)
    if count:
        warnings.warn(
            f"{folder}: {count} images in {' and '.join(private.name for private in present)} have "
            "no labels, so no evaluation reads them; `detect predict` scores them",
            DataWarning,
            stacklevel=2,
        )


# Layout "textures": written on this machine when first opened


def _textures_root(root: Path | None) -> Path:
    return textures.default_root() if root is None else root


def _textures_categories(root: Path) -> list[str]:
    return sorted(textures.PHOTOGRAPHS)


def _textures_records(root: Path, name: str) -> list[Record]:
    """Its last training images are held out: they come from a region of their own."""
    records = _mvtec_records(root, name)
    return [
        replace(record, split="held_out")
        if record.split == "train" and int(record.path.stem) >= textures.NUM_FIT
        else record
        for record in records
    ]


def _write_textures(root: Path, name: str, bars: Bars) -> Path:
    try:
        textures.write_textures(root, name)
    except (OSError, UserError) as error:
        if root.is_dir() and os.access(root, os.W_OK):
            raise
        raise UserError(
            f"{root}: the photographs cannot be written there; give --root FOLDER, or set "
            "XDG_CACHE_HOME to a folder that can be written to"
        ) from error
    return root


# Layout "hub": a dataset of the Hugging Face Hub, written to a cache folder when first opened


def _hub_root(root: Path | None) -> Path:
    if root is None:
        raise UserError("root: the layout 'hub' needs a dataset; give --root ORG/NAME, or a folder")
    return root


READERS: dict[str, Reader] = {
    "folder": Reader(_folder_categories, _folder_records),
    "mvtec": Reader(_mvtec_categories, _mvtec_records),
    "visa": VISA,
    "mpdd": Reader(_mvtec_categories, _mvtec_records),
    "btad": BTAD,
    "mtd": MTD,
    "dagm": DAGM,
    "loco": Reader(_mvtec_categories, _loco_records),
    "mvtec-ad-2": Reader(_mvtec_categories, _ad2_records),
    "real-iad": REAL_IAD,
    "textures": Reader(_textures_categories, _textures_records, _textures_root, _write_textures),
    "hub": Reader(hub_categories, _folder_records, _hub_root, write_hub_dataset),
}

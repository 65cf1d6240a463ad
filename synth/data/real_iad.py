"""Layout "real-iad": <images>/<category>, split by realiad_jsons/<category>.json.

The images are in one of the publishers' sizes (IMAGE_FOLDERS). A split file holds
{"meta": {"prefix": "<category>/", "normal_class": "OK"}, "train": [...], "test": [...]}, whose rows
have the FIELDS below; paths are relative to <images>/<prefix>.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from synth.base.errors import UserError
from synth.base.files import read_fault
from synth.data.records import GOOD, Reader, Record, Split, require_mask, require_some

SPLITS = "realiad_jsons"
IMAGE_FOLDERS = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")
"""The first that is there is read; 1024 px is what the publishers' experiments use."""
FIELDS = {"category", "anomaly_class", "image_path", "mask_path"}


def _split_folder(root: Path) -> Path:
    """The split files; their archive unpacks into a folder of its own name."""
    inner = root / SPLITS / SPLITS
    return inner if inner.is_dir() else root / SPLITS


def _images(root: Path) -> Path:
    return next((root / n for n in IMAGE_FOLDERS if (root / n).is_dir()), root / IMAGE_FOLDERS[0])


def _categories(root: Path) -> list[str]:
    images = _images(root)
    names = sorted(path.stem for path in _split_folder(root).glob("*.json"))
    return [name for name in names if (images / name).is_dir()]


def _records(root: Path, name: str) -> list[Record]:
    path = _split_folder(root) / f"{name}.json"
    splits = _read_splits(path)
    folder, normal = _images(root) / splits["meta"]["prefix"], splits["meta"]["normal_class"]
    train = [_record(path, folder, normal, "train", row) for row in splits["train"]]
    test = [_record(path, folder, normal, "test", row) for row in splits["test"]]
    if len({record.path for record in train + test}) < len(train + test):
        raise UserError(f"{path}: lists an image twice; unpack it again")
    test.sort(key=lambda record: (record.defect, record.path.as_posix()))
    return require_some(sorted(train, key=lambda record: record.path.as_posix()), folder) + test


def _read_splits(path: Path) -> dict[str, Any]:
    try:
        splits = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(read_fault(path, error)) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); unpack it again") from error
    fits = (
        isinstance(splits, dict)
        and isinstance(splits.get("meta"), dict)
        and isinstance(splits["meta"].get("normal_class"), str)
        and _is_below(splits["meta"].get("prefix"))
        and all(isinstance(splits.get(split), list) for split in ("train", "test"))
    )
    if not fits:
        raise UserError(
            f'{path}: expected {{"meta": {{"prefix": ..., "normal_class": ...}}, "train": [...], '
            '"test": [...]}; unpack it again'
        )
    return splits


def _record(path: Path, folder: Path, normal: str, split: Split, row: Any) -> Record:
    if not _fits(row, normal, split):
        raise UserError(
            f"{path}: {json.dumps(row)[:300]} in {split!r}; expected category, anomaly_class, "
            f"image_path and mask_path: class {normal} with mask null, or in 'test' another class "
            "and its mask: unpack it again"
        )
    image, mask = folder / row["image_path"], row["mask_path"]
    if not image.is_file():
        raise UserError(f"{image}: missing, though {path} lists it; unpack it again")
    if mask is None:
        return Record(image, split, GOOD, None)
    return Record(image, split, row["anomaly_class"], require_mask(image, folder / mask))


def _fits(row: Any, normal: str, split: Split) -> bool:
    """Whether a row is whole: training images are normal, anomalous ones have a mask."""
    if not isinstance(row, dict) or set(row) != FIELDS or not _is_below(row["image_path"]):
        return False
    if row["anomaly_class"] == normal:
        return row["mask_path"] is None
    is_kind = isinstance(row["anomaly_class"], str)
    return is_kind and split == "test" and _is_below(row["mask_path"])


def _is_below(path: object) -> bool:
    """Whether this is a relative path that stays below where it starts."""
    if not isinstance(path, str) or not path:
        return False
    parts = PurePosixPath(path)
    return not parts.is_absolute() and ".." not in parts.parts


REAL_IAD = Reader(_categories, _records)

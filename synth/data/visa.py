"""Layout "visa": the official archive with its split file, or either of its repacked forms.

official: <category>/Data/Images/{Normal,Anomaly}, Data/Masks/Anomaly; split_csv/1cls.csv at the
root says which images train and test. Repacked: <category>/train, test and ground_truth with ok and
ko (RealNet's authors), or with good and bad (the data set's own prepare_data.py).
"""

import csv
from pathlib import Path

from synth.base.errors import UserError
from synth.data.archives import two_sided_records
from synth.data.records import GOOD, Reader, Record, require_mask, require_some, subfolders
from synth.images import list_images

SPLIT_FILE = "split_csv/1cls.csv"
FIELDS = ["object", "split", "label", "image", "mask"]
FOLDERS = {"normal": "Normal", "anomaly": "Anomaly"}
"""The split file's label -> where such images lie in Data/Images."""
REPACKED = {"ok": "ko", "good": "bad"}


def _categories(root: Path) -> list[str]:
    return [
        folder.name
        for folder in subfolders(root)
        if (folder / "Data/Images").is_dir() or _repacked_good(folder) is not None
    ]


def _repacked_good(folder: Path) -> str | None:
    return next((good for good in REPACKED if (folder / "train" / good).is_dir()), None)


def _records(root: Path, name: str) -> list[Record]:
    good = _repacked_good(root / name)
    if good is not None:
        return two_sided_records(root / name, good, REPACKED[good])
    return _official_records(root, name)


def _official_records(root: Path, name: str) -> list[Record]:
    records = [_record(root, number, row) for number, row in _rows(root, name)]
    listed = {record.path for record in records}
    if len(listed) < len(records):
        raise UserError(f"{root / SPLIT_FILE}: lists an image of {name} twice; unpack it again")
    stray = [p for p in list_images(root / name / "Data/Images", recursive=True) if p not in listed]
    if stray:
        raise UserError(f"{stray[0]}: not in {root / SPLIT_FILE}, would not be used; remove it")
    records.sort(key=lambda record: (record.defect, record.path.as_posix()))
    train = [record for record in records if record.split == "train"]
    test = [record for record in records if record.split == "test"]
    return require_some(train, root / name) + test


def _rows(root: Path, name: str) -> list[tuple[int, list[str]]]:
    """Read the rows of one category, each with its line number."""
    path = root / SPLIT_FILE
    if not path.is_file():
        raise UserError(f"{path}: missing; it says which images train and test: unpack it again")
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    if not lines or lines[0] != FIELDS:
        raise UserError(f"{path}: the first line must be {','.join(FIELDS)}; unpack it again")
    return [(n, row) for n, row in enumerate(lines[1:], start=2) if row and row[0] == name]


def _record(root: Path, number: int, row: list[str]) -> Record:
    """Turn a row into a record; an image must lie where its label says, a normal one must train."""
    category, split, label, image, mask = row if len(row) == len(FIELDS) else [""] * len(FIELDS)
    images = f"{category}/Data/Images/{FOLDERS.get(label, '?')}/"
    masks = f"{category}/Data/Masks/Anomaly/"
    fits = _lies_in(images, image) and (
        (not mask and split in ("train", "test"))
        if label == "normal"
        else (_lies_in(masks, mask) and split == "test")
    )
    if not fits:
        raise UserError(
            f"{root / SPLIT_FILE}: line {number} is {','.join(row)!r}; expected CATEGORY,train or "
            "test,normal,IMAGE, or CATEGORY,test,anomaly,IMAGE,MASK: unpack it again"
        )
    path = root / image
    if not path.is_file():
        raise UserError(
            f"{path}: missing, though {root / SPLIT_FILE} lists it (line {number}); unpack it again"
        )
    if label == "normal":
        return Record(path, "train" if split == "train" else "test", GOOD, None)
    return Record(path, "test", "anomaly", require_mask(path, root / mask))


def _lies_in(folder: str, path: str) -> bool:
    """Whether `path` is a file directly in `folder`, both relative to the root, with slashes."""
    return path.startswith(folder) and "/" not in path.removeprefix(folder)


VISA = Reader(_categories, _records)

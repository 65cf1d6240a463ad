"""Datasets of the Hugging Face Hub, or in a local folder that `datasets` reads, as image files.

A configuration is a category. Its images are written once to a cache folder in the layout "folder":
train/good, test/<label>, ground_truth/<label>. Columns: `image` (or the only one with images),
`mask` (optional), and `label` (optional: a ClassLabel, text, an integer or a bool). Normal are the
labels good, normal and ok, the numbers 0 and False, and every image where there is no label column.
Normal images of the split "train" (or of the only split) train; all others test.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from synth.base.cache import cache_folder
from synth.base.errors import UserError
from synth.base.files import write_json
from synth.base.progress import Bars
from synth.data.records import GOOD
from synth.images import FORMATS, write_atomically

NORMAL_LABELS = ("good", "normal", "ok")
ANOMALOUS = "anomalous"
DONE_FILE = "done.json"
SIA_COLUMNS = frozenset({"dataset", "category", "index", "sha256"})
"""What images of ours have, published or not. They have no label, and none of them is normal."""
SUFFIX = {name: f".{name.lower()}" for name in FORMATS} | {"MPO": ".jpeg"}


class Columns(NamedTuple):
    """The columns that are used; `label_names` are a ClassLabel's."""

    image: str
    label: str | None
    mask: str | None
    label_names: tuple[str, ...] | None


class Place(NamedTuple):
    """Where a row's image goes, and its mask, without suffixes."""

    image: str
    mask: str


def hub_categories(root: Path) -> list[str]:
    """The configurations of the dataset; the last part of its name where there is only one.

    Raises UserError for an unknown or gated dataset and where the Hub cannot be reached.
    """
    names = _configurations(root)
    return [_short_name(root)] if len(names) == 1 else names


def write_hub_dataset(root: Path, category: str, bars: Bars) -> Path:
    """Write the images of a configuration to the cache folder unless they are there; the folder.

    Files are the dataset's own bytes. What an interrupted run has written stays. Raises UserError
    as `hub_categories`, and for missing columns, an anomalous row without its mask, no normal image
    to train on, or an image in a format that is not read.
    """
    import datasets

    configurations = _configurations(root)
    config = configurations[0] if len(configurations) == 1 else category
    with _faults_of(root):
        builder = datasets.load_dataset_builder(root.as_posix(), config)
    folder = _folder_of(root, config, builder.cache_dir)
    if (folder / DONE_FILE).is_file():
        return folder
    with _faults_of(root):
        builder.download_and_prepare()
    loaded = builder.as_dataset()
    assert isinstance(loaded, datasets.DatasetDict)
    splits = {str(name): table for name, table in loaded.items()}
    columns = _find_columns(root, next(iter(splits.values())).features)
    training = _training_split(root, list(splits))
    total, done = sum(len(table) for table in splits.values()), 0
    with bars("writing images", "image") as update:
        for split, table in splits.items():
            for place, row in _places(root, split, table, columns, split == training):
                _write_row(folder, root, place, row, columns)
                done += 1
                update(done, total)
    if not any((folder / "train" / GOOD).glob("*")):
        raise UserError(f"{root}: no normal image in the split {training!r} to train on")
    write_json(folder / DONE_FILE, {"dataset": str(root), "config": config, "num_images": total})
    return folder


# Finding


@contextmanager
def _faults_of(root: Path) -> Iterator[None]:
    """What goes wrong on the way to a dataset, in one line; the Hub's own words say which it is."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except DatasetNotFoundError as error:
        raise UserError(
            f"{root}: {_first_line(error)} Check --root, a folder or ORG/NAME; for a gated or "
            "private dataset ask for access on its page and run `hf auth login`"
        ) from error
    except (ConnectionError, TimeoutError) as error:
        raise UserError(
            f"{root}: no such folder, and the Hugging Face Hub cannot be reached "
            f"({_first_line(error)}); connect, or give a folder that holds the dataset"
        ) from error
    except (DatasetsError, HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{root}: not read as a dataset ({_first_line(error)}); give ORG/NAME or a folder "
            "whose images or Parquet files `datasets.load_dataset` reads"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _configurations(root: Path) -> list[str]:
    import datasets

    with _faults_of(root):
        return datasets.get_dataset_config_names(root.as_posix())


def _short_name(root: Path) -> str:
    return root.resolve().name if root.is_dir() else root.name


def _folder_of(root: Path, config: str, version: str) -> Path:
    """Another revision of the dataset, or other files in a local folder, have another folder."""
    digest = hashlib.sha256(f"{root}\n{version}".encode()).hexdigest()[:12]
    return cache_folder() / "hub" / f"{_plain(_short_name(root))}-{_plain(config)}-{digest}"


def _plain(name: str) -> str:
    """The name with nothing in it that a file system could object to."""
    return re.sub(r"[^\w-]+", "_", name).strip("_") or "_"


def _training_split(root: Path, splits: list[str]) -> str:
    if "train" in splits:
        return "train"
    if len(splits) > 1:
        raise UserError(
            f"{root}: splits {', '.join(splits)}; one must be called train, to train on"
        )
    return splits[0]


def _find_columns(root: Path, features: Mapping[str, Any]) -> Columns:
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    with_images = [name for name, kind in features.items() if isinstance(kind, ImageFeature)]
    if set(features) >= SIA_COLUMNS:
        raise UserError(
            f"{root}: SIA images, which show anomalies; give a dataset of normal images"
        )
    candidates = [name for name in with_images if name != "mask"]
    if "image" not in with_images and len(candidates) != 1:
        found = ", ".join(candidates) or "none"
        raise UserError(
            f"{root}: one column must hold images, called image if there are several; got {found} "
            f"among the columns {', '.join(features)}"
        )
    kind = features.get("label")
    names = tuple(kind.names) if isinstance(kind, ClassLabel) else None
    if names is not None and not any(_is_normal(name) for name in names):
        raise UserError(
            f"{root}: none of the labels {', '.join(names)} is {', '.join(NORMAL_LABELS)}: it does "
            "not say which images are normal; rename one in a copy of the dataset"
        )
    return Columns(
        image="image" if "image" in with_images else candidates[0],
        label=None if kind is None else "label",
        mask="mask" if "mask" in with_images else None,
        label_names=names,
    )


# Rows


def _places(
    root: Path, split: str, table: Any, columns: Columns, trains: bool
) -> Iterator[tuple[Place, dict[str, Any]]]:
    from datasets import Image as ImageFeature

    used = [name for name in (columns.image, columns.label, columns.mask) if name is not None]
    table = table.select_columns(used)
    for name in (columns.image, columns.mask):
        if name is not None:
            table = table.cast_column(name, ImageFeature(decode=False))
    for number, row in enumerate(table):
        defect = _defect(row, columns)
        if defect is None:
            raise UserError(
                f"{root}: row {number} of split {split} has no label; normal or not must be known"
            )
        stem = f"{_plain(split)}_{number:06d}"
        anomalous, mask = defect != GOOD, columns.mask is not None and row[columns.mask] is not None
        if columns.mask is not None and anomalous and not mask:
            raise UserError(
                f"{root}: row {number} of split {split} is {defect} and has no mask; drop the mask "
                "column or the row in a copy of the dataset"
            )
        if columns.label is None and mask:
            raise UserError(
                f"{root}: has masks and no column 'label' that says which images are normal; add "
                "one in a copy of the dataset"
            )
        side = "train" if trains and not anomalous else "test"
        yield Place(f"{side}/{defect}/{stem}", f"ground_truth/{defect}/{stem}"), row


def _defect(row: Mapping[str, Any], columns: Columns) -> str | None:
    """The row's folder: "good", the plain label, or "anomalous" for a number; None without one."""
    if columns.label is None:
        return GOOD
    label = row[columns.label]
    if columns.label_names is not None:  # a ClassLabel's -1 stands for none
        label = columns.label_names[label] if label is not None and label >= 0 else None
    if label is None:
        return None
    if _is_normal(label):
        return GOOD
    return _plain(label) if isinstance(label, str) else ANOMALOUS


def _is_normal(label: object) -> bool:
    return label.lower() in NORMAL_LABELS if isinstance(label, str) else label == 0


def _write_row(
    folder: Path, root: Path, place: Place, row: Mapping[str, Any], columns: Columns
) -> None:
    _write_image(folder / place.image, root, row[columns.image])
    if columns.mask is not None and place.image.split("/")[1] != GOOD:
        _write_image(folder / place.mask, root, row[columns.mask])


def _write_image(path: Path, root: Path, image: Mapping[str, Any] | None) -> None:
    """Write the bytes of an image, or copy the file that it names, under the suffix they have."""
    data = None if image is None else image["bytes"] or Path(image["path"]).read_bytes()
    try:
        kind = None if data is None else Image.open(io.BytesIO(data), formats=FORMATS).format
    except UnidentifiedImageError:
        kind = None
    if data is None or kind not in SUFFIX:
        raise UserError(
            f"{root}: {path.name} (split and row) is {kind or 'no image'}; allowed are "
            f"{', '.join(FORMATS)}: convert it in a copy of the dataset"
        )
    target = path.with_name(path.name + SUFFIX[kind])
    if not target.exists():
        write_atomically(target, data)

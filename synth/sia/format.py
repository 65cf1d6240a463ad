"""The SIA folder, format 1: names of files, the header, the records of shards.

data_cards/SIA_FORMAT.md is normative.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from synth.base.errors import UserError
from synth.base.files import read_json, require_component

FORMAT = 1
SHARD_SIZE = 100
IMAGES_PER_FOLDER = 1000
HEADER_FILE, METADATA_FILE = "sia.json", "metadata.jsonl"
ROW_FIELDS: dict[str, type] = {"file_name": str, "index": int, "sha256": str}
MASK_FIELDS: dict[str, type] = {"mask_file_name": str}
"""What readers rely on; rows say more."""

Kind = Literal["source", "blended"]
Row = dict[str, Any]


class SiaHeader(NamedTuple):
    """What made a folder: `config` is all that its images depend on."""

    kind: Kind
    dataset: str
    category: str
    config: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As written to sia.json."""
        return {"format": FORMAT, **self._asdict()}


def header_faults(header: Mapping[str, Any]) -> Iterator[str]:
    """Say which fields of sia.json are missing or are not what they must be."""
    if header.get("kind") not in get_args(Kind):
        yield f"kind is {header.get('kind')!r}, must be one of {', '.join(get_args(Kind))}"
    for name in ("dataset", "category"):
        try:
            require_component(name, header.get(name))
        except UserError as error:
            yield str(error)
    if not isinstance(header.get("config"), dict):
        yield f"config is {header.get('config')!r}, must be an object"


def other_format(found: object) -> str:
    """What to say of a folder whose header does not name FORMAT."""
    return (
        f"format {found!r}, this version reads format {FORMAT}; update siaforge, or make the "
        "folder anew with this version"
    )


def image_path(index: int) -> str:
    """Where image `index` lies, relative to its SIA folder."""
    return f"images/{index // IMAGES_PER_FOLDER:03d}/{index:06d}.png"


def mask_path(index: int) -> str:
    """Where the mask of blended image `index` lies, relative to its SIA folder."""
    return f"masks/{index // IMAGES_PER_FOLDER:03d}/{index:06d}.png"


PATHS = {"file_name": image_path, "mask_file_name": mask_path}
"""What the fields of a row that name its files must say, by its index."""


def shard_path(shard: int) -> str:
    """Where the record of a shard lies, relative to its SIA folder."""
    return f"shards/{shard:03d}.json"


def shard_indices(shard: int, num_images: int) -> range:
    """The images of a shard, below `num_images`."""
    return range(shard * SHARD_SIZE, min((shard + 1) * SHARD_SIZE, num_images))


class ShardRecord(NamedTuple):
    """What a shard's record says; without one, nothing and not done."""

    done: bool
    rows: list[Row]

    def present(self, folder: Path) -> list[Row]:
        """The rows whose files exist."""
        return [
            row
            for row in self.rows
            if (folder / row["file_name"]).exists()
            and (folder / row.get("mask_file_name", row["file_name"])).exists()
        ]


def read_shard(folder: Path, shard: int) -> ShardRecord:
    """Read the record of a shard. Raises UserError if it is damaged."""
    path = folder / shard_path(shard)
    if not path.exists():
        return ShardRecord(False, [])
    cure = "delete this file and run the command that made the folder again"
    record = read_json(path, cure)
    rows = record.get("rows")
    if not isinstance(rows, list):
        raise UserError(f"{path}: damaged (no rows); {cure}")
    for row in rows:
        check_row(path, row, ROW_FIELDS, cure)
    return ShardRecord(record.get("status") == "done", rows)


def check_row(path: Path, row: object, fields: Mapping[str, type], cure: str) -> None:
    """Raise UserError, naming `path`, unless `row` has these fields and names its own files."""
    for name, kind in fields.items():
        if not isinstance(row, dict) or not isinstance(row.get(name), kind):
            raise UserError(f"{path}: damaged (a row without {name}); {cure}")
    assert isinstance(row, dict)
    for name, path_of in PATHS.items():
        if name in row and row[name] != path_of(row["index"]):
            raise UserError(
                f"{path}: damaged ({name} of index {row['index']} is {row[name]!r}); {cure}"
            )


def count_missing(folder: Path, shard: int, num_images: int) -> int:
    """How many images of a shard no record vouches for, or are gone; 0 only when it is done."""
    record = read_shard(folder, shard)
    present = {row["index"] for row in record.present(folder)}
    missing = sum(index not in present for index in shard_indices(shard, num_images))
    return missing if record.done else max(missing, 1)

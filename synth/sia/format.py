"""The SIA folder, format 1: names of files, the header, the records of shards.

data_cards/SIA_FORMAT.md is normative.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from synth.base.errors import UserError
from synth.base.files import read_json, require_component
from synth.sia.rows import Row, check_row

FORMAT = 1
SHARD_SIZE = 100
HEADER_FILE, METADATA_FILE = "sia.json", "metadata.jsonl"

Kind = Literal["source", "blended"]


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


# Shards


def shard_path(shard: int) -> str:
    """Where the record of a shard lies, relative to its SIA folder."""
    return f"shards/{shard:03d}.json"


def shard_indices(shard: int, num_images: int | None = None) -> range:
    """The images of a shard, below `num_images` if that is given."""
    stop = (shard + 1) * SHARD_SIZE
    return range(shard * SHARD_SIZE, stop if num_images is None else min(stop, num_images))


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
        check_row(path, row, None, cure)
    return ShardRecord(record.get("status") == "done", rows)


def count_missing(folder: Path, shard: int, num_images: int) -> int:
    """How many images of a shard have no record or no file; 0 only when it is done."""
    record = read_shard(folder, shard)
    present = {row["index"] for row in record.present(folder)}
    missing = sum(index not in present for index in shard_indices(shard, num_images))
    return missing if record.done else max(missing, 1)

"""SIA folders as Parquet shards: the original PNG bytes, typed columns, the same on every run.

A shard takes the rows in order until it has SHARD_BYTES of images, so that a folder that grows
keeps its full shards. It is done when its record lies beside it, which is written last.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Features, Image, Value
from datasets.arrow_writer import ParquetWriter

from synth.base.errors import UserError
from synth.base.files import (
    atomic_path,
    file_digest,
    read_json,
    reading,
    remove_partials,
    write_json,
)
from synth.base.progress import Update
from synth.sia.format import METADATA_FILE
from synth.sia.reader import SiaFolder
from synth.sia.rows import FIELDS, Row

AGAIN = "run the command that made the folder again"
SHARD_BYTES = 256 * 2**20
GROUP_BYTES, GROUP_ROWS = 32 * 2**20, 100
"""A row group ends at the first of the two: what is in memory at once, and what a viewer reads."""
FILE_FIELDS = {"file_name": "image", "mask_file_name": "mask"}
"""Fields of a row that name a file, and the column that holds the file itself."""
DIGEST_FIELDS = {"file_name": "sha256", "mask_file_name": "mask_sha256"}
"""The checksum of such a file; folders written before 0.2 have none of their masks."""
NUMBERS = frozenset(name for name, field in FIELDS.items() if field.type.startswith("a number"))
"""Fields that are float64 also where every value happens to be whole or missing."""
COLUMNS: dict[frozenset[type], str] = {
    frozenset(): "string",
    frozenset({str}): "string",
    frozenset({bool}): "bool",
    frozenset({int}): "int64",
    frozenset({float}): "float64",
    frozenset({int, float}): "float64",
}
"""The column for values of these types, beside missing ones."""


class Shard(NamedTuple):
    """Rows start..stop-1 of a folder; `path` is relative to the staging folder."""

    path: str
    start: int
    stop: int
    image_bytes: int


class WrittenShard(NamedTuple):
    """A shard on disk: rows, bytes in memory (as `datasets` counts them), bytes of the file."""

    path: str
    num_rows: int
    num_bytes: int
    file_bytes: int
    sha256: str


class Subset(NamedTuple):
    """One SIA folder as a configuration of the published dataset."""

    name: str
    folder: SiaFolder
    features: Features
    shards: tuple[Shard, ...]

    @property
    def has_masks(self) -> bool:
        """Whether there is a mask column."""
        return "mask" in self.features


def make_subset(folder: SiaFolder) -> Subset:
    """Plan the shards of a complete folder. Raises UserError for a field that no column can hold.

    The configuration is named after the category, in letters that suit paths and addresses.
    """
    name = re.sub(r"[^\w.-]+", "-", folder.category).strip("-.") or "default"
    return Subset(name, folder, row_features(folder), tuple(plan_shards(name, folder)))


def row_features(folder: SiaFolder) -> Features:
    """The columns: image, mask where there are masks, then the rows' fields as they come."""
    types: dict[str, set[type]] = {}
    for number, row in enumerate(folder.rows, start=1):
        for field, value in row.items():
            known = types.setdefault(field, set())
            found = known | ({type(value)} - {type(None)})
            if frozenset(found) not in COLUMNS or is_too_long(value):
                raise UserError(
                    f"{folder.path / METADATA_FILE}: line {number}: {field} is {value!r}, where a "
                    f"column of {COLUMNS[frozenset(known)] if known else 'text or numbers'} is "
                    "published; make the field alike in all rows, or remove it"
                )
            types[field] = found
    files = {column: Image() for field, column in FILE_FIELDS.items() if field in types}
    values = {
        field: Value("float64" if field in NUMBERS else COLUMNS[frozenset(found)])
        for field, found in types.items()
        if field not in FILE_FIELDS
    }
    return Features(files | values)


def is_too_long(value: object) -> bool:
    """Whether it is an integer that no column holds."""
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def plan_shards(name: str, folder: SiaFolder) -> Iterator[Shard]:
    """Cut the rows into shards by the sizes of their files. Raises UserError for a missing file."""
    start = size = count = 0
    for stop, row in enumerate(folder.rows, start=1):
        size += sum(file_size(folder.path / row[field]) for field in FILE_FIELDS if field in row)
        if size >= SHARD_BYTES or stop == len(folder.rows):
            yield Shard(f"{name}/train-{count:05d}.parquet", start, stop, size)
            start, size, count = stop, 0, count + 1


def file_size(path: Path) -> int:
    """Bytes of a file that must be there."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: missing or unreadable ({error.strerror}); {AGAIN}") from None


def write_shard(subset: Subset, shard: Shard, staging: Path, update: Update) -> WrittenShard:
    """Write one shard and its record, or find them done; the shard as it is on disk.

    update: called with the rows done and all rows of this subset. Raises UserError for an image
    that changed since it was made, and for a full disk.
    """
    path = staging / shard.path
    record = path.with_suffix(".json")
    source = source_digest(subset, shard)
    done = finished_shard(path, record, source)
    if done is None:
        remove_partials(path)
        record.unlink(missing_ok=True)
        with atomic_path(path) as partial:
            num_rows, num_bytes = write_rows(subset, shard, partial, update)
        sha256 = file_digest(path)
        done = WrittenShard(shard.path, num_rows, num_bytes, file_size(path), sha256)
        write_json(record, done._asdict() | {"source": source})
    update(shard.stop, len(subset.folder.rows))
    return done


def finished_shard(path: Path, record: Path, source: str) -> WrittenShard | None:
    """The shard as its record has it; None unless both are whole and of the same rows."""
    if not (path.exists() and record.exists()):
        return None
    known = read_json(record, "delete this file and run the same command again")
    if known.pop("source", None) != source or set(known) != set(WrittenShard._fields):
        return None
    if known["sha256"] != file_digest(path):
        return None
    return WrittenShard(**known)


def source_digest(subset: Subset, shard: Shard) -> str:
    """A fingerprint of what a shard is made from: rows (with the images' checksums), masks."""
    rows = subset.folder.rows[shard.start : shard.stop]
    masks = [
        (subset.folder.path / row["mask_file_name"]).stat()
        for row in rows
        if "mask_file_name" in row
    ]
    about = [subset.features.to_dict(), rows, [(s.st_size, s.st_mtime_ns) for s in masks]]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def write_rows(subset: Subset, shard: Shard, path: Path, update: Update) -> tuple[int, int]:
    """Write the rows of a shard, a row group in memory at a time; how many, and their bytes."""
    done = shard.start
    with ParquetWriter(path=str(path), features=subset.features) as writer:
        for group in row_groups(subset, shard):
            columns = {name: [row.get(name) for row in group] for name in subset.features}
            writer.write_batch(columns, writer_batch_size=len(group))
            done += len(group)
            update(done, len(subset.folder.rows))
        return writer.finalize()


def row_groups(subset: Subset, shard: Shard) -> Iterator[list[Row]]:
    """The rows of a shard with their files' bytes, in groups."""
    group: list[Row] = []
    size = 0
    for row in subset.folder.rows[shard.start : shard.stop]:
        group.append(with_files(subset.folder.path, row))
        size += sum(
            len(group[-1][name]["bytes"]) for name in FILE_FIELDS.values() if name in group[-1]
        )
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def with_files(folder: Path, row: Row) -> Row:
    """A row with its files' bytes in place of their names. Raises UserError for a changed file."""
    full: dict[str, Any] = {key: value for key, value in row.items() if key not in FILE_FIELDS}
    for field, column in FILE_FIELDS.items():
        if field not in row:
            continue
        path = folder / row[field]
        with reading(path, AGAIN):
            content = path.read_bytes()
        wanted = row.get(DIGEST_FIELDS[field])
        if wanted is not None and hashlib.sha256(content).hexdigest() != wanted:
            raise UserError(
                f"{path}: not the {column} that its row describes (another checksum); delete it "
                "and run the command that made the folder again"
            )
        full[column] = {"bytes": content, "path": path.name}
    return full


def totals(shards: Sequence[WrittenShard]) -> tuple[int, int, int]:
    """Rows, bytes in memory and bytes on disk of all shards."""
    return (
        sum(shard.num_rows for shard in shards),
        sum(shard.num_bytes for shard in shards),
        sum(shard.file_bytes for shard in shards),
    )

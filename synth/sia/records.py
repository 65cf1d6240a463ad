"""What is wrong with the header and the records of an SIA folder."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synth.base.errors import UserError
from synth.base.files import read_json
from synth.sia.format import FORMAT, METADATA_FILE, SHARD_SIZE, Row, header_faults, other_format
from synth.sia.image_files import SHARDS
from synth.sia.rows import index_of

CURE = "delete it and run the command that made the folder again"
UNFINISHED = "unfinished; run the command that made the folder again"
RECORD_NAME = re.compile(r"(\d{3,})\.json")

Header = Mapping[str, Any]


# The header


def read_header(path: Path) -> tuple[Header, list[str]]:
    """sia.json, empty where it cannot be read, and what is wrong with it."""
    if not path.is_file():
        return {}, [f"{path}: missing; run the command that made the folder again"]
    try:
        header = read_json(path, CURE)
    except UserError as error:
        return {}, [str(error)]
    if header.get("format") != FORMAT:
        fault = other_format(header.get("format"))
        return {"format": None}, [f"{path}: {fault}; nothing else was checked"]
    return header, [f"{path}: {fault}" for fault in header_faults(header)]


def size_of(header: Header) -> tuple[int, int] | None:
    """(height, width) of all images, where the header says so."""
    config = header.get("config")
    match config.get("image_size") if isinstance(config, Mapping) else None:
        case [int(height), int(width)]:
            return height, width
    return None


# Records


def read_record(path: Path, shard: int, is_last: bool) -> tuple[list[Row] | None, list[str]]:
    """The rows of a shard's record, one for an index; None where there is no such record.

    Also what is wrong with the record, but for what the rows say besides their index.
    """
    if not path.is_file():
        return None, [f"{path}: missing; {UNFINISHED}"]
    try:
        record = read_json(path, CURE)
    except UserError as error:
        return None, [str(error)]
    faults = []
    if record.get("shard") != shard:
        faults.append(f"shard is {record.get('shard')!r}, must be {shard}")
    if record.get("status") != "done":
        faults.append(f"status is {record.get('status')!r}, not 'done': {UNFINISHED}")
    found = record.get("rows")
    if not isinstance(found, list):
        return None, [f"{path}: {fault}" for fault in [*faults, f"damaged (no rows); {CURE}"]]
    rows, more = rows_by_index(found, shard_range(shard), is_last)
    return rows, [f"{path}: {fault}" for fault in faults + more]


def rows_by_index(
    found: list[object], indices: range, is_last: bool
) -> tuple[list[Row], list[str]]:
    """The rows of a record, those without a place left out, and what is wrong with their order."""
    rows: dict[int, Row] = {}
    faults = []
    for number, row in enumerate(found, 1):
        index = index_of(row)
        if index is None or not isinstance(row, dict):
            faults.append(f"row {number} has no index")
        elif index not in indices:
            faults.append(f"index {index}: belongs to another shard")
        elif index in rows:
            faults.append(f"index {index}: a second row")
        else:
            if index < max(rows, default=index):
                faults.append(f"index {index}: comes after index {max(rows)}")
            rows[index] = row
    stop = max(rows, default=indices.start - 1) + 1 if is_last else indices.stop
    gaps = [str(index) for index in range(indices.start, stop) if index not in rows]
    if gaps or not found:
        faults.append(f"no row of index {', '.join(gaps) or indices.start}")
    return list(rows.values()), faults


def shard_range(shard: int) -> range:
    """The images of a full shard."""
    return range(shard * SHARD_SIZE, (shard + 1) * SHARD_SIZE)


def record_numbers(folder: Path) -> list[int]:
    """The numbers of the records in shards/, rising."""
    names = (RECORD_NAME.fullmatch(path.name) for path in folder.glob(f"{SHARDS}/*.json"))
    return sorted({int(name[1]) for name in names if name})


def count_rows(folder: Path) -> int:
    """How many images there are to check, by metadata.jsonl or else by the number of records."""
    path = folder / METADATA_FILE
    if not path.is_file():
        return len(record_numbers(folder)) * SHARD_SIZE
    with path.open("rb") as file:
        return sum(1 for _ in file)

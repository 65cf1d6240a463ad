"""Every way in which an SIA folder is not what data_cards/SIA_FORMAT.md says, one line each.

The folder is read shard by shard, with the rows of metadata.jsonl beside those of the record, so
that what is in memory hardly grows with the number of images; images are read, compared with their
digests and decoded by several threads.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from synth.base.errors import UserError
from synth.base.files import DAMAGE, config_differences, json_object, read_json
from synth.base.progress import Bars, no_bars
from synth.sia.format import (
    FORMAT,
    HEADER_FILE,
    METADATA_FILE,
    SHARD_SIZE,
    header_faults,
    other_format,
    shard_indices,
    shard_path,
)
from synth.sia.image_files import absent_files, row_file_faults, stray_files
from synth.sia.rows import (
    IMAGES_PER_FOLDER,
    PATHS,
    Header,
    Row,
    config_of,
    index_of,
    row_faults,
    with_its_files,
)

SHARDS_PER_FOLDER = IMAGES_PER_FOLDER // SHARD_SIZE
CURE = "delete it and run the command that made the folder again"
UNFINISHED = "unfinished; run the command that made the folder again"
RECORD_NAME = re.compile(r"(\d{3,})\.json")
CARD_FILE = "README.md"

OnFault = Callable[[str], None]
CheckFiles = Callable[[list[Row], int], Iterator[str]]
"""(rows, number of rows in all) -> what is wrong with their files."""


class Validation(NamedTuple):
    """How many images a folder's rows name, and how many faults were told."""

    num_images: int
    num_faults: int


def sia_folders(folder: Path) -> list[Path]:
    """`folder` if it is an SIA folder, else those below it, broken ones too.

    Raises UserError if there is none.
    """
    marks = (HEADER_FILE, METADATA_FILE, "shards")
    if any((folder / mark).exists() for mark in marks):
        return [folder]
    found = {path.parent for mark in marks for path in folder.rglob(mark)}
    if not found:
        raise UserError(f"{folder}: no SIA folder (with {HEADER_FILE}) here or below; check it")
    return sorted(found)


def validate_sia(
    folder: Path,
    on_fault: OnFault,
    bars: Bars = no_bars,
    *,
    open_images: bool = True,
    num_threads: int | None = None,
) -> Validation:
    """Tell `on_fault` of every fault of an SIA folder, each as one line that names the file.

    open_images: False looks at header, records, metadata and the names of files only. num_threads:
    default one per processor. Nothing is changed. A folder of another format is not looked into.
    """
    num_images = num_faults = 0
    header, header_lines = read_header(folder / HEADER_FILE)
    check = partial(row_file_faults if open_images else absent_files, folder, size=size_of(header))
    with (
        bars("checking images", "image") as update,
        ThreadPoolExecutor(num_threads or os.cpu_count()) as pool,
    ):

        def check_files(rows: list[Row], total: int) -> Iterator[str]:
            nonlocal num_images
            for lines in pool.map(check, rows):
                num_images += 1
                yield from lines
                update(num_images, max(total, num_images))

        is_ours = header.get("format", FORMAT) == FORMAT
        lines = folder_faults(folder, header, check_files) if is_ours else ()
        for fault in itertools.chain(header_lines, lines):
            on_fault(fault)
            num_faults += 1
    return Validation(num_images, num_faults)


def folder_faults(folder: Path, header: Header, check_files: CheckFiles) -> Iterator[str]:
    """Compare records, metadata and files, shard by shard.

    A gap without rows is one line, however long: one stray record may have any number.
    """
    records = record_numbers(folder)
    metadata = Metadata(folder / METADATA_FILE)
    yield from metadata.read()
    shards = known_shards(records, {index // SHARD_SIZE for index in metadata.places})
    total = len(metadata.places) or len(records) * SHARD_SIZE
    previous, looked_into = -1, set[str]()
    for thousand, group in itertools.groupby(shards, lambda shard: shard // SHARDS_PER_FOLDER):
        named = set[str]()
        for shard in group:
            yield from gap_faults(folder, previous, shard)
            lines, rows = shard_faults(folder, header, shard, shard == shards[-1], metadata)
            yield from lines
            yield from check_files(rows, total)
            named.update(row[name] for row in rows for name in PATHS if name in row)
            previous = shard
        for tree in (f"images/{thousand:03d}", f"masks/{thousand:03d}"):
            yield from stray_files(folder, tree, named)
            looked_into.add(tree)
    yield from metadata.unrecorded(metadata.places)
    named = {HEADER_FILE, METADATA_FILE, CARD_FILE, *map(shard_path, records)}
    yield from stray_files(folder, "", named, looked_into)


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
    match config_of(header).get("image_size"):
        case [int(height), int(width)]:
            return height, width
    return None


# Records and metadata


class Metadata:
    """metadata.jsonl: where in it the row of each index starts that nobody has taken yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[int, int] = {}

    def read(self) -> Iterator[str]:
        """Note the places of all rows; what is wrong with lines and their order."""
        if not self.path.is_file():
            yield f"{self.path}: missing; {UNFINISHED}"
            return
        last, place = -1, 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    index, fault = index_of(json_object(line)), None
                except DAMAGE as error:
                    index, fault = None, f"damaged ({error})"
                if index is None:
                    fault = fault or "a row without an index"
                elif index in self.places:
                    fault = f"a second row of index {index}"
                else:
                    fault = f"index {index} comes after index {last}" if index < last else None
                    last, self.places[index] = index, place
                if fault:
                    yield f"{self.path}, line {number}: {fault}"
                place += len(line)

    def take(self, indices: range) -> dict[int, Row]:
        """The rows of these images that are there, by index; their places are forgotten."""
        places = {index: self.places.pop(index) for index in indices if index in self.places}
        rows: dict[int, Row] = {}
        if places:
            with self.path.open("rb") as file:
                for index, place in places.items():
                    file.seek(place)
                    rows[index] = json_object(file.readline())
        return rows

    def unrecorded(self, indices: Iterable[int]) -> list[str]:
        """What to say of rows that no record has."""
        return [f"{self.path}: index {i}: no record in shards/ has it" for i in sorted(indices)]


def record_numbers(folder: Path) -> list[int]:
    """The numbers of the records in shards/."""
    names = (RECORD_NAME.fullmatch(path.name) for path in folder.glob("shards/*.json"))
    return [int(name[1]) for name in names if name]


def known_shards(records: list[int], in_metadata: set[int]) -> list[int]:
    """The shards to look at, rising: those with a record, and those whose record must be missing.

    The rows of metadata.jsonl tell of these, below the last record and in a row behind it.
    """
    last = max(records, default=-1)
    while last + 1 in in_metadata:
        last += 1
    return sorted(shard for shard in {*records, *in_metadata} if 0 <= shard <= last)


def gap_faults(folder: Path, previous: int, shard: int) -> Iterator[str]:
    """Name the records that are missing between two shards."""
    if shard > previous + 1:
        more = f" to {shard_path(shard - 1)}" if shard > previous + 2 else ""
        yield f"{folder / shard_path(previous + 1)}{more}: missing; {UNFINISHED}"


def shard_faults(
    folder: Path, header: Header, shard: int, is_last: bool, metadata: Metadata
) -> tuple[list[str], list[Row]]:
    """What is wrong with a shard's record and rows; its rows, with the files that are their own.

    Where there is no record, the metadata still say which images there are.
    """
    path, others = folder / shard_path(shard), metadata.take(shard_indices(shard))
    rows, lines = read_record(path, shard, is_last)
    recorded = rows is not None
    if rows is None:
        path, rows, others = metadata.path, list(others.values()), {}
    for row in rows:
        index = row["index"]
        lines += [f"{path}: index {index}: {fault}" for fault in row_faults(row, header)]
        if recorded and metadata.path.is_file():
            lines += row_differences(metadata.path, row, others.pop(index, None), shard)
    return lines + metadata.unrecorded(others), [with_its_files(row) for row in rows]


def row_differences(path: Path, row: Row, other: Row | None, shard: int) -> Iterator[str]:
    """Compare a row of a record with that of metadata.jsonl."""
    if other is None:
        yield f"{path}: no row of index {row['index']} in its place"
    elif other != row:
        differences = "; ".join(config_differences(row, other))
        yield f"{path}: index {row['index']}: not as in {shard_path(shard)} ({differences})"


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
    rows, more = rows_by_index(found, shard_indices(shard), is_last)
    return rows, [f"{path}: {fault}" for fault in faults + more]


def rows_by_index(found: list[Any], indices: range, is_last: bool) -> tuple[list[Row], list[str]]:
    """The rows of a record, those without a place left out, and what is wrong with their order."""
    rows: dict[int, Row] = {}
    faults = []
    for number, row in enumerate(found, 1):
        index = index_of(row)
        if index is None:
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

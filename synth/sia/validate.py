"""Every way in which an SIA folder is not what data_cards/SIA_FORMAT.md says, one line each.

The folder is read shard by shard, with metadata.jsonl alongside, so that memory does not grow with
the number of images; images are read, compared with their digests and decoded by several threads.
"""

import bisect
import itertools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from synth.base.errors import UserError
from synth.base.progress import Bars, no_bars
from synth.sia.format import (
    FORMAT,
    HEADER_FILE,
    IMAGES_PER_FOLDER,
    METADATA_FILE,
    SHARD_SIZE,
    Row,
    image_path,
    mask_path,
    shard_path,
)
from synth.sia.image_files import (
    FILE_NAMES,
    SHARDS,
    TREES,
    absent_files,
    row_file_faults,
    stray_elsewhere,
    stray_files,
)
from synth.sia.metadata import MetadataAhead
from synth.sia.records import (
    UNFINISHED,
    Header,
    count_rows,
    read_header,
    read_record,
    record_numbers,
    shard_range,
    size_of,
)
from synth.sia.rows import row_faults

SHARDS_PER_FOLDER = IMAGES_PER_FOLDER // SHARD_SIZE

OnFault = Callable[[str], None]


class Verdict(NamedTuple):
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
) -> Verdict:
    """Tell `on_fault` of every fault of an SIA folder, each as one line that names the file.

    open_images: False looks at header, records, metadata and the names of files only. num_threads:
    default one per processor. Nothing is changed. A folder of another format is not looked into.
    """
    num_images = num_faults = 0

    def tell(faults: Iterator[str]) -> None:
        nonlocal num_faults
        for fault in faults:
            on_fault(fault)
            num_faults += 1

    header, faults = read_header(folder / HEADER_FILE)
    tell(iter(faults))
    if header.get("format", FORMAT) != FORMAT:
        return Verdict(0, num_faults)
    check = partial(row_file_faults if open_images else absent_files, folder, size=size_of(header))
    with (
        bars("checking images", "image") as update,
        ThreadPoolExecutor(num_threads or os.cpu_count()) as pool,
    ):
        total = count_rows(folder)

        def checked(rows: list[Row]) -> Iterator[str]:
            nonlocal num_images
            for lines in pool.map(check, rows):
                num_images += 1
                yield from lines
                update(num_images, max(total, num_images))

        tell(folder_faults(folder, header, checked))
    return Verdict(num_images, num_faults)


# Shard by shard


class ShardCheck(NamedTuple):
    """What is wrong with a shard's record and rows; the rows whose files are to be looked at."""

    number: int
    lines: list[str]
    rows: list[Row]


def folder_faults(
    folder: Path, header: Header, check: Callable[[list[Row]], Iterator[str]]
) -> Iterator[str]:
    """Compare records, metadata and files; `check` says what is wrong with the files of rows."""
    records, looked_at = record_numbers(folder), set[str]()
    shards = check_shards(folder, header, records)
    for thousand, group in itertools.groupby(shards, lambda s: s.number // SHARDS_PER_FOLDER):
        named: set[str] = set()
        for shard in group:
            yield from shard.lines
            yield from check(shard.rows)
            named.update(row[name] for row in shard.rows for name in FILE_NAMES if name in row)
        for tree in TREES:
            yield from stray_files(folder, f"{tree}/{thousand:03d}", named)
        looked_at.add(f"{thousand:03d}")
    yield from stray_files(folder, SHARDS, {shard_path(number) for number in records})
    yield from stray_elsewhere(folder, looked_at)


def check_shards(folder: Path, header: Header, records: list[int]) -> Iterator[ShardCheck]:
    """Check the records of these numbers, the gaps between them, and rows of metadata.jsonl beyond.

    A gap without rows is one line, however long: one stray record may have any number.
    """
    last, shard = max(records, default=-1), -1
    metadata = MetadataAhead(folder / METADATA_FILE)
    if not metadata.path.is_file():
        yield ShardCheck(0, [f"{metadata.path}: missing; {UNFINISHED}"], [])
    while True:
        shard += 1
        indices = shard_range(shard)
        lines = list(metadata.read_to(indices.stop))
        if shard > last and not metadata.has(indices):
            yield ShardCheck(shard, lines + list(metadata.drop_below(math.inf)), [])
            return
        stop = next_shard(shard, records, metadata)
        if stop > shard + 1:
            gap = f"{folder / shard_path(shard)} to {shard_path(stop - 1)}"
            yield ShardCheck(shard, [*lines, f"{gap}: missing; {UNFINISHED}"], [])
            shard = stop - 1
            continue
        is_last = shard >= last and not metadata.has(shard_range(shard + 1))
        path = folder / shard_path(shard)
        rows, faults = read_record(path, shard, is_last)
        lines += faults
        if rows is None:  # the metadata still say which images there are
            path, rows = metadata.path, metadata.take(indices)
        for row in rows:
            lines += [f"{path}: index {row['index']}: {fault}" for fault in row_faults(row, header)]
            if path != metadata.path:
                lines += metadata.compare(row, shard_path(shard))
        lines += metadata.drop_below(indices.stop)
        yield ShardCheck(shard, lines, [with_its_files(row) for row in rows])


def next_shard(shard: int, records: list[int], metadata: MetadataAhead) -> int:
    """`shard` itself where it has a record or rows, else the next one that has; -1 if none has."""
    following = records[bisect.bisect_left(records, shard) :][:1]
    first = metadata.first()
    following += [] if first is None else [max(first // SHARD_SIZE, shard)]
    return min(following, default=-1)


def with_its_files(row: Row) -> Row:
    """A row without the names of files that are not its own: a name could lead anywhere."""
    own = {"file_name": image_path(row["index"]), "mask_file_name": mask_path(row["index"])}
    return {name: value for name, value in row.items() if own.get(name, value) == value}

"""Writing an SIA folder: by several processes, in shards of 100 images, interrupted at any time.

A process holds the lock of a shard while it makes its images; a process that is killed loses the
images of the last seconds. PNGs are written in the background while the next images are made.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synth.base.claims import claim_folder
from synth.base.errors import UserError
from synth.base.files import PARTIAL_SUFFIX, atomic_path, file_digest, write_json
from synth.base.locks import Lock, take_lock
from synth.images import write_png
from synth.sia.format import (
    HEADER_FILE,
    METADATA_FILE,
    SHARD_SIZE,
    SiaHeader,
    count_missing,
    read_shard,
    shard_indices,
    shard_path,
)
from synth.sia.rows import IMAGES_PER_FOLDER, Row, image_path, mask_path

MAX_WAITING_BYTES = 64 * 2**20
"""Images in memory that wait to be written: 340 of 256 x 256 px."""
OVERHEAD_BYTES = 4096
"""Of an image that waits, beside its pixels."""
NUM_WRITERS = min(4, os.cpu_count() or 1)
SAVE_SECONDS = 2.0
"""How often the record of an open shard is written: what a kill can lose."""

OnImage = Callable[[int, int], None]
"""Told (images done, images in all); the second falls when other processes share the work."""


class Item(NamedTuple):
    """One image, uint8 [H, W, 3] RGB; its mask, bool [H, W], or None; what its row says besides."""

    number: int
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    row: Mapping[str, Any]


MakeItems = Callable[[Iterator[int]], Iterable[Item]]
"""Makes an item of every index that it is given, in any order; it may take some ahead."""


class Written(NamedTuple):
    """What `write_sia` did.

    waited_seconds: of `seconds`, how long the maker of images stood still because MAX_WAITING_BYTES
    of them waited to be written. complete: whether the folder is, by all processes together.
    """

    folder: Path
    num_images: int
    seconds: float
    waited_seconds: float
    complete: bool

    def sentence(self, title: str) -> str:
        """Where the result is, for the end of a command."""
        rest = "" if self.complete else " (unfinished: other shares of it are still to be made)"
        return f"{title}: {self.folder}{rest}"


def write_sia(
    folder: Path,
    header: SiaHeader,
    num_images: int,
    make_items: MakeItems,
    *,
    process: int = 0,
    num_processes: int = 1,
    on_image: OnImage | None = None,
) -> Written:
    """Write the missing images of 0..num_images-1 as `make_items` yields them.

    Process r of n takes the shards r::n. Processes with the same share divide it among themselves;
    none returns before the share is done. The one that finds all shards done writes metadata.jsonl.
    A folder of the same configuration is continued, or grown when num_images has risen. Raises
    UserError for another configuration, for fewer images than the folder has, for a damaged record,
    and for a full disk.
    """
    start = time.monotonic()
    if num_images < 1:
        raise UserError(f"num: got {num_images}, must be at least 1")
    claim_folder(folder, header.to_json(), HEADER_FILE)
    refuse_shrinking(folder, num_images)
    # Shares go by the shard's number: which shards are open differs from process to process.
    share = all_shards(num_images)[process::num_processes]
    writer = ShareWriter(folder, header, num_images, share, on_image)
    if writer.total:
        (folder / METADATA_FILE).unlink(missing_ok=True)
    while writer.total > writer.done:
        writer.write_round(make_items)
        writer.wait_for_others()
    complete = write_metadata(folder, num_images)
    seconds = time.monotonic() - start
    return Written(folder, writer.done, seconds, writer.waited_seconds, complete)


def all_shards(num_images: int) -> range:
    """The numbers of the shards of a folder."""
    return range(-(-num_images // SHARD_SIZE))


class OpenShard:
    """A shard that this process holds: the rows it has, the images that are to come."""

    def __init__(self, folder: Path, shard: int, num_images: int, lock: Lock) -> None:
        self.folder, self.shard, self.lock = folder, shard, lock
        self.rows = read_shard(folder, shard).present(folder)
        self.to_come = set(shard_indices(shard, num_images)) - {row["index"] for row in self.rows}
        self.saved_at = time.monotonic()
        if lock.held is not None:  # nobody else writes here
            self.remove_partials()

    def add(self, row: Row) -> None:
        """Note an image that is written."""
        self.rows.append(row)
        self.to_come.discard(row["index"])

    def save(self, status: str) -> None:
        """Write the record: the rows by index."""
        rows = sorted(self.rows, key=lambda row: row["index"])
        record = {"shard": self.shard, "status": status, "rows": rows}
        write_json(self.folder / shard_path(self.shard), record)
        self.saved_at = time.monotonic()

    def remove_partials(self) -> None:
        """Remove what a killed process left."""
        number = self.shard * SHARD_SIZE // IMAGES_PER_FOLDER
        for path in self.folder.glob(f"*/{number:03d}/.*{PARTIAL_SUFFIX}"):
            index = path.name.split(".")[1]
            if index.isdecimal() and int(index) in self.to_come:
                path.unlink(missing_ok=True)
        for path in self.folder.glob(f"shards/.{self.shard:03d}.json.*{PARTIAL_SUFFIX}"):
            path.unlink(missing_ok=True)


def lock_path(folder: Path, shard: int) -> Path:
    """The file whose lock a process holds while it works on a shard; gone when nobody does."""
    return folder / f"shards/.{shard:03d}.lock"


class ShareWriter:
    """Writes the missing images of some shards of a folder; `done` of `total` so far."""

    def __init__(
        self,
        folder: Path,
        header: SiaHeader,
        num_images: int,
        share: range,
        on_image: OnImage | None,
    ) -> None:
        self.folder, self.header, self.num_images = folder, header, num_images
        self.share, self.on_image = share, on_image
        self.open: dict[int, OpenShard] = {}
        self.waiting: deque[tuple[int, Future[Row]]] = deque()
        """Bytes of an image, and its row to come."""
        self.waiting_bytes = 0
        self.waited_seconds = 0.0
        self.done = 0
        self.total = sum(self.missing().values())

    def missing(self) -> dict[int, int]:
        """How many images are missing in each shard of the share that is not done."""
        counts = {s: count_missing(self.folder, s, self.num_images) for s in self.share}
        return {shard: count for shard, count in counts.items() if count}

    def write_round(self, make_items: MakeItems) -> None:
        """Make and write what is missing in all shards that nobody else holds."""
        with ThreadPoolExecutor(max_workers=NUM_WRITERS) as pool:
            try:
                for item in make_items(self.take_indices()):
                    size = OVERHEAD_BYTES + item.image.nbytes
                    row = pool.submit(write_item, self.folder, self.header, item)
                    self.waiting.append((size, row))
                    self.waiting_bytes += size
                    self.collect(MAX_WAITING_BYTES)
                self.collect(0)
                assert not self.open, f"no images came for {list(self.open)}"
            except BaseException:
                self.keep_what_is_written()
                raise

    def take_indices(self) -> Iterator[int]:
        """Open shard after shard, where there is something to do, and give their indices out."""
        for shard in self.share:
            if not count_missing(self.folder, shard, self.num_images):
                continue
            lock = take_lock(lock_path(self.folder, shard))
            if lock is None:
                continue
            opened = self.open[shard] = OpenShard(self.folder, shard, self.num_images, lock)
            yield from sorted(opened.to_come)
            if not opened.to_come:  # another process was faster, or died before the last line
                self.close(opened)

    def collect(self, max_bytes: int) -> None:
        """Note rows whose files are written, waiting for them while more than `max_bytes` wait."""
        while self.waiting and (self.waiting_bytes > max_bytes or self.waiting[0][1].done()):
            start = time.monotonic()
            size, future = self.waiting.popleft()
            self.waiting_bytes -= size
            row = future.result()
            if max_bytes:  # at the end nobody is kept from making images
                self.waited_seconds += time.monotonic() - start
            self.note(row)

    def note(self, row: Row) -> None:
        """Add a row to its shard, whose record is written now and then, and when it is full."""
        opened = self.open[row["index"] // SHARD_SIZE]
        opened.add(row)
        if not opened.to_come:
            self.close(opened)
        elif time.monotonic() - opened.saved_at > SAVE_SECONDS:
            opened.save("open")
        self.done += 1
        if self.on_image is not None:
            self.on_image(self.done, self.total)

    def close(self, opened: OpenShard) -> None:
        """Write a shard's record and let go of it."""
        if opened.shard in self.open:
            opened.save("done")
            opened.lock.release()
            del self.open[opened.shard]

    def keep_what_is_written(self) -> None:
        """After a fault: save the rows of what was written, and let go of all shards."""
        for _, future in self.waiting:
            if future.exception() is None:
                row = future.result()
                self.open[row["index"] // SHARD_SIZE].add(row)
        for opened in self.open.values():
            with suppress(UserError):  # the first fault is the one to report
                opened.save("open" if opened.to_come else "done")
            opened.lock.release()

    def wait_for_others(self) -> None:
        """Count anew what is missing; wait while another process has it, until that ends."""
        missing = self.missing()
        self.total = self.done + sum(missing.values())
        if missing:
            lock = take_lock(lock_path(self.folder, next(iter(missing))), wait=True)
            assert lock is not None
            lock.release()


def write_item(folder: Path, header: SiaHeader, item: Item) -> Row:
    """Write one image (and mask) and return its row."""
    row: Row = {"file_name": image_path(item.number)}
    write_png(folder / image_path(item.number), item.image)
    if item.mask is not None:
        row["mask_file_name"] = mask_path(item.number)
        write_png(folder / mask_path(item.number), item.mask)
        row["mask_sha256"] = file_digest(folder / mask_path(item.number))
    digest = file_digest(folder / image_path(item.number))
    about = {"dataset": header.dataset, "category": header.category, "index": item.number}
    return row | about | dict(item.row) | {"sha256": digest}


def write_metadata(folder: Path, num_images: int) -> bool:
    """Write metadata.jsonl from the records if all shards are done; whether they are.

    One record is in memory at a time. A folder that another process grows meanwhile is not done.
    """
    shards = all_shards(num_images)
    if any(count_missing(folder, shard, num_images) for shard in shards):
        return False
    if last_index(folder) >= num_images:
        return False
    with (
        atomic_path(folder / METADATA_FILE) as partial,
        partial.open("w", encoding="utf-8", newline="\n") as file,
    ):
        for shard in shards:
            file.writelines(json.dumps(row) + "\n" for row in read_shard(folder, shard).rows)
    for path in folder.glob("shards/.*.lock"):  # of killed processes
        lock = take_lock(path)
        if lock is not None:
            lock.release()
    return True


def refuse_shrinking(folder: Path, num_images: int) -> None:
    """Raise UserError when the folder has an image beyond `num_images`, recorded or begun."""
    last = last_index(folder)
    if last >= num_images:
        raise UserError(
            f"num: got {num_images}, but {folder} already has image number {last}; "
            f"give --num {last + 1} or more, or another --out"
        )


def last_index(folder: Path) -> int:
    """The number of the last image in the folder, -1 if there is none."""
    stems = (path.stem for path in folder.glob("images/*/*.png"))
    return max((int(stem) for stem in stems if stem.isdecimal()), default=-1)

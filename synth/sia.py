"""The SIA folder, format 1: anomaly images ("source"), or images with masks ("blended").

data_cards/SIA_FORMAT.md is normative. A shard of 100 images is done when its record shards/NNN.json
exists, which is written last; metadata.jsonl, from all records, makes the folder readable by
`datasets` ("imagefolder") when complete.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synth.errors import UserError
from synth.files import atomic_path, claim_folder, read_json, write_json
from synth.images import read_image, read_mask, write_png

FORMAT = 1
SHARD_SIZE = 100
IMAGES_PER_FOLDER = 1000
MAX_WAITING = 8
"""Images in memory that wait to be written."""
HEADER_FILE, METADATA_FILE = "sia.json", "metadata.jsonl"
ROW_FIELDS: dict[str, type] = {"file_name": str, "index": int, "sha256": str}
MASK_FIELDS: dict[str, type] = {"mask_file_name": str}
"""What readers rely on; rows say more."""

Kind = Literal["source", "blended"]
Row = dict[str, Any]
OnImage = Callable[[int, int], None]
"""Told (images done, images in all)."""


class Item(NamedTuple):
    """One image, uint8 [H, W, 3] RGB; its mask, bool [H, W], or None; what its row says besides."""

    number: int
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_] | None
    row: Mapping[str, Any]


class SiaHeader(NamedTuple):
    """What made a folder: `config` is all that its images depend on."""

    kind: Kind
    dataset: str
    category: str
    config: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As written to sia.json."""
        return {"format": FORMAT, **self._asdict()}


def image_path(index: int) -> str:
    """Where image `index` lies, relative to its SIA folder."""
    return f"images/{index // IMAGES_PER_FOLDER:03d}/{index:06d}.png"


def mask_path(index: int) -> str:
    """Where the mask of blended image `index` lies, relative to its SIA folder."""
    return f"masks/{index // IMAGES_PER_FOLDER:03d}/{index:06d}.png"


def shard_path(shard: int) -> str:
    """Where the record of a shard lies, relative to its SIA folder."""
    return f"shards/{shard:03d}.json"


def write_sia(
    folder: Path,
    header: SiaHeader,
    num_images: int,
    make_items: Callable[[list[int]], Iterable[Item]],
    *,
    process: int = 0,
    num_processes: int = 1,
    on_image: OnImage | None = None,
) -> int:
    """Write the missing images of 0..num_images-1 as `make_items` yields them.

    Returns how many were missing here. Process r of n takes the shards r::n; the process that finds
    all shards done writes metadata.jsonl. A folder of the same configuration is continued, or grown
    when num_images has risen. Raises UserError for another configuration, for fewer images than the
    folder has, for a damaged record, and for a full disk.
    """
    if num_images < 1:
        raise UserError(f"num: got {num_images}, must be at least 1")
    claim_folder(folder, header.to_json(), HEADER_FILE)
    refuse_shrinking(folder, num_images)
    shards = range(-(-num_images // SHARD_SIZE))
    # Shares go by the shard's number: which shards are open differs from process to process.
    sizes = {s: len(missing_indices(folder, s, num_images)) for s in shards[process::num_processes]}
    total, done = sum(sizes.values()), 0
    if total:
        (folder / METADATA_FILE).unlink(missing_ok=True)

    def counted(items: Iterable[Item]) -> Iterator[Item]:
        nonlocal done
        for item in items:
            yield item
            done += 1
            if on_image is not None:
                on_image(done, total)

    with ThreadPoolExecutor(max_workers=2) as pool:
        for shard in (shard for shard, size in sizes.items() if size):
            missing = missing_indices(folder, shard, num_images)
            rows = write_items(folder, header, counted(make_items(missing)), pool)
            kept = [row for row in shard_rows(folder, shard) if row["index"] not in missing]
            write_json(folder / shard_path(shard), sorted_record(shard, kept + rows))
    if not any(missing_indices(folder, shard, num_images) for shard in shards):
        write_metadata(folder, shards)
    return total


def write_items(
    folder: Path, header: SiaHeader, items: Iterable[Item], pool: ThreadPoolExecutor
) -> list[Row]:
    """Write images in the background, few of them waiting; their rows. Raises the first fault."""
    rows: list[Row] = []
    waiting: deque[Future[Row]] = deque()
    for item in items:
        waiting.append(pool.submit(write_item, folder, header, item))
        if len(waiting) > MAX_WAITING:
            rows.append(waiting.popleft().result())
    return rows + [row.result() for row in waiting]


def write_item(folder: Path, header: SiaHeader, item: Item) -> Row:
    """Write one image (and mask) and return its row."""
    row: Row = {"file_name": image_path(item.number)}
    write_png(folder / image_path(item.number), item.image)
    if item.mask is not None:
        row["mask_file_name"] = mask_path(item.number)
        write_png(folder / mask_path(item.number), item.mask)
    digest = hashlib.sha256((folder / image_path(item.number)).read_bytes()).hexdigest()
    about = {"dataset": header.dataset, "category": header.category, "index": item.number}
    return row | about | dict(item.row) | {"sha256": digest}


def write_metadata(folder: Path, shards: Iterable[int]) -> None:
    """Write metadata.jsonl from the shards' records, one record in memory at a time."""
    with (
        atomic_path(folder / METADATA_FILE) as partial,
        partial.open("w", encoding="utf-8", newline="\n") as file,
    ):
        for shard in shards:
            file.writelines(json.dumps(row) + "\n" for row in shard_rows(folder, shard))


def sorted_record(shard: int, rows: list[Row]) -> dict[str, Any]:
    """A shard's record: its rows by index."""
    return {"shard": shard, "status": "done", "rows": sorted(rows, key=lambda row: row["index"])}


def shard_rows(folder: Path, shard: int) -> list[Row]:
    """The rows of a shard's record, none when it has no record yet. Raises UserError if damaged."""
    path = folder / shard_path(shard)
    if not path.exists():
        return []
    cure = "delete this file and run the command that made the folder again"
    rows = read_json(path, cure).get("rows")
    if not isinstance(rows, list):
        raise UserError(f"{path}: damaged (no rows); {cure}")
    for row in rows:
        check_row(path, row, ROW_FIELDS, cure)
    return rows


def check_row(path: Path, row: object, fields: Mapping[str, type], cure: str) -> None:
    """Raise UserError, naming `path`, unless `row` is an object with these fields."""
    for name, kind in fields.items():
        if not isinstance(row, dict) or not isinstance(row.get(name), kind):
            raise UserError(f"{path}: damaged (a row without {name}); {cure}")


def missing_indices(folder: Path, shard: int, num_images: int) -> list[int]:
    """The images of a shard, below `num_images`, that no record vouches for or that are gone."""
    wanted = range(shard * SHARD_SIZE, min((shard + 1) * SHARD_SIZE, num_images))
    present = {
        row["index"]
        for row in shard_rows(folder, shard)
        if (folder / row["file_name"]).exists()
        and (folder / row.get("mask_file_name", row["file_name"])).exists()
    }
    return [index for index in wanted if index not in present]


def refuse_shrinking(folder: Path, num_images: int) -> None:
    """Raise UserError when the folder has an image beyond `num_images`, recorded or begun."""
    numbers = [int(path.stem) for path in folder.glob("images/*/*.png") if path.stem.isdecimal()]
    count = max(numbers, default=-1) + 1
    if count > num_images:
        raise UserError(
            f"num: got {num_images}, but {folder} already has image number {count - 1}; "
            f"give --num {count} or more, or another --out"
        )


class SiaFolder(NamedTuple):
    """A complete SIA folder, for reading."""

    path: Path
    kind: Kind
    dataset: str
    category: str
    config: Mapping[str, Any]
    rows: tuple[Row, ...]

    def read_image(self, number: int) -> NDArray[np.uint8]:
        """Image of row `number`, uint8 [H, W, 3] RGB."""
        return read_image(self.path / self.rows[number]["file_name"])

    def read_mask(self, number: int) -> NDArray[np.bool_]:
        """Mask of row `number`, bool [H, W]. Raises UserError for a folder of kind "source"."""
        if self.kind != "blended":
            raise UserError(
                f"{self.path}: kind is {self.kind!r}, which has no masks; give a blended folder"
            )
        return read_mask(self.path / self.rows[number]["mask_file_name"], None)


def open_sia(folder: Path, kind: Kind | None = None) -> SiaFolder:
    """Open a complete SIA folder, or the only one below `folder`.

    Raises UserError when there is none or several, for another format or kind, and for an
    unfinished folder.
    """
    headers = (
        [folder / HEADER_FILE]
        if (folder / HEADER_FILE).exists()
        else sorted(folder.rglob(HEADER_FILE))
    )
    if len(headers) != 1:
        found = ", ".join(str(path.parent) for path in headers) or "none"
        raise UserError(f"{folder}: expected one SIA folder (with {HEADER_FILE}), found {found}")
    folder, header = headers[0].parent, read_json(headers[0])
    if header.get("format") != FORMAT:
        raise UserError(
            f"{headers[0]}: format {header.get('format')}, this version reads format {FORMAT}"
        )
    lacking = [name for name in SiaHeader._fields if name not in header]
    if lacking or header["kind"] not in ("source", "blended"):
        raise UserError(f"{headers[0]}: damaged ({', '.join(lacking) or 'kind'}); make it anew")
    if kind is not None and header["kind"] != kind:
        raise UserError(f"{folder}: kind is {header['kind']!r}, expected {kind!r}")
    metadata = folder / METADATA_FILE
    if not metadata.exists():
        raise UserError(
            f"{folder}: unfinished; run the command that made it once more to complete it"
        )
    fields = ROW_FIELDS | (MASK_FIELDS if header["kind"] == "blended" else {})
    about = (header["kind"], header["dataset"], header["category"], header["config"])
    return SiaFolder(folder, *about, read_metadata(metadata, fields))


def read_metadata(path: Path, fields: Mapping[str, type]) -> tuple[Row, ...]:
    """The rows of metadata.jsonl, each with these fields. Raises UserError, naming the line."""
    cure = "run the command that made the folder again"
    rows: list[Row] = []
    with path.open(encoding="utf-8") as file:
        try:
            for line in file:
                rows.append(json.loads(line))
                check_row(path, rows[-1], fields, cure)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{path}: damaged (line {len(rows) + 1}: {error}); {cure}") from None
    if not rows:
        raise UserError(f"{path}: damaged (no rows); {cure}")
    return tuple(rows)

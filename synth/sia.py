"""The SIA folder, format 1: anomaly images ("source"), or images with masks ("blended").

data_cards/SIA_FORMAT.md is normative. A shard of 100 images is done when its record shards/NNN.json
exists, which is written last; metadata.jsonl, from all records, makes the folder readable by
`datasets` ("imagefolder") when complete.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synth.errors import UserError
from synth.files import claim_folder, read_json, write_json, write_text
from synth.images import read_image, read_mask, write_png

FORMAT = 1
SHARD_SIZE = 100
IMAGES_PER_FOLDER = 1000
HEADER_FILE, METADATA_FILE = "sia.json", "metadata.jsonl"

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

    Returns how many were missing here. Process r of n takes the open shards r::n; the process that
    finds all shards done writes metadata.jsonl. A folder of the same configuration is continued, or
    grown when num_images has risen. Raises UserError for another configuration, for fewer images
    than the folder has, and for a full disk.
    """
    if num_images < 1:
        raise UserError(f"num: got {num_images}, must be at least 1")
    claim_folder(folder, header.to_json(), HEADER_FILE)
    shards = range(-(-num_images // SHARD_SIZE))
    refuse_shrinking(folder, num_images)
    missing = {shard: missing_indices(folder, shard, num_images) for shard in shards}
    mine = [shard for shard in shards if missing[shard]][process::num_processes]
    total, done = sum(len(missing[shard]) for shard in mine), 0
    with ThreadPoolExecutor(max_workers=2) as pool:
        for shard in mine:
            rows: list[Future[Row]] = []
            for item in make_items(missing[shard]):
                rows.append(pool.submit(write_item, folder, header, item))
                done += 1
                if on_image is not None:
                    on_image(done, total)
            known = shard_rows(folder, shard) + [row.result() for row in rows]
            write_json(folder / shard_path(shard), sorted_record(shard, known))
    if not any(missing_indices(folder, shard, num_images) for shard in shards):
        rows_in_order = [row for shard in shards for row in shard_rows(folder, shard)]
        write_text(folder / METADATA_FILE, "".join(json.dumps(row) + "\n" for row in rows_in_order))
    return total


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


def sorted_record(shard: int, rows: list[Row]) -> dict[str, Any]:
    """A shard's record: its rows by index."""
    return {"shard": shard, "status": "done", "rows": sorted(rows, key=lambda row: row["index"])}


def shard_rows(folder: Path, shard: int) -> list[Row]:
    """The rows of a shard's record, none when it has no record yet."""
    path = folder / shard_path(shard)
    return read_json(path)["rows"] if path.exists() else []


def missing_indices(folder: Path, shard: int, num_images: int) -> list[int]:
    """The images of a shard, below `num_images`, that no record vouches for."""
    wanted = range(shard * SHARD_SIZE, min((shard + 1) * SHARD_SIZE, num_images))
    recorded = {row["index"] for row in shard_rows(folder, shard)}
    return [index for index in wanted if index not in recorded]


def refuse_shrinking(folder: Path, num_images: int) -> None:
    """Raise UserError when the folder records more than `num_images` images."""
    count = sum(len(read_json(path)["rows"]) for path in folder.glob("shards/*.json"))
    if count > num_images:
        raise UserError(
            f"num: got {num_images}, but {folder} already holds {count} images; give --num {count}"
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
    if kind is not None and header["kind"] != kind:
        raise UserError(f"{folder}: kind is {header['kind']!r}, expected {kind!r}")
    metadata = folder / METADATA_FILE
    if not metadata.exists():
        raise UserError(
            f"{folder}: unfinished; run the command that made it once more to complete it"
        )
    rows = tuple(json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines())
    return SiaFolder(
        folder, header["kind"], header["dataset"], header["category"], header["config"], rows
    )

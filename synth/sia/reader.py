"""The SIA folder: anomaly images ("source"), or images with masks ("blended").

Here is the reader; `synth.sia.writer` writes. data_cards/SIA_FORMAT.md is normative.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synth.base.errors import UserError
from synth.base.files import read_json, read_json_lines
from synth.images import read_image, read_mask
from synth.sia.format import (
    FORMAT,
    HEADER_FILE,
    METADATA_FILE,
    Kind,
    SiaHeader,
    header_faults,
    other_format,
)
from synth.sia.rows import Row, check_row
from synth.sia.writer import Item, OnImage, Written, write_sia

__all__ = ["Item", "Kind", "OnImage", "SiaFolder", "SiaHeader", "Written", "open_sia", "write_sia"]

MADE_BY: Mapping[Kind, str] = {
    "source": "anomaly images, such as `synth generate` makes",
    "blended": "images with masks, such as `synth blend` makes",
}


class SiaFolder(NamedTuple):
    """A complete SIA folder, for reading."""

    path: Path
    kind: Kind
    dataset: str
    category: str
    config: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def product(self) -> str | None:
        """The category that the images show; None for textures, which show none."""
        return None if self.config.get("method") == "textures" else self.category

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
        raise UserError(
            f"{folder}: expected one SIA folder (with {HEADER_FILE}), found {found}; name its own "
            "folder"
        )
    folder, header = headers[0].parent, read_json(headers[0])
    if header.get("format") != FORMAT:
        raise UserError(f"{headers[0]}: {other_format(header.get('format'))}")
    fault = next(header_faults(header), None)
    if fault is not None:
        raise UserError(f"{headers[0]}: damaged ({fault}); make it anew")
    if kind is not None and header["kind"] != kind:
        raise UserError(
            f"{folder}: kind is {header['kind']!r}, expected {kind!r}: give {MADE_BY[kind]}"
        )
    metadata = folder / METADATA_FILE
    if not metadata.exists():
        raise UserError(
            f"{folder}: unfinished; run the command that made it once more to complete it"
        )
    about = (header["kind"], header["dataset"], header["category"], header["config"])
    return SiaFolder(folder, *about, read_metadata(metadata, header["kind"]))


def read_metadata(path: Path, kind: Kind) -> tuple[Row, ...]:
    """The rows of metadata.jsonl. Raises UserError for one that lacks what is needed."""
    cure = "run the command that made the folder again"
    rows: list[Row] = []
    for row in read_json_lines(path, cure):
        check_row(path, row, kind, cure)
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: damaged (no rows); {cure}")
    return tuple(rows)

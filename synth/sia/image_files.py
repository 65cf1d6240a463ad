"""What is wrong with the image files of an SIA folder: one row's files, and files nobody named."""

import hashlib
import io
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synth.base.files import PARTIAL_SUFFIX
from synth.images import MAX_PIXELS
from synth.sia.format import HEADER_FILE, METADATA_FILE, Row

PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
"""The last chunk. Decoders do without it, so that only its absence shows a file cut at its end."""

COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
"""PNG colour types."""

CARD_FILE = "README.md"
TREES = ("images", "masks")
SHARDS = "shards"
FILE_NAMES = ("file_name", "mask_file_name")
LOCK_NAME = re.compile(r"\.\d+\.lock")


class PngHeader(NamedTuple):
    """The start of a PNG; width and height in pixels."""

    width: int
    height: int
    bits: int
    colour: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


# The files of a row


def row_file_faults(folder: Path, row: Row, size: tuple[int, int] | None) -> list[str]:
    """Read, compare and decode the files that a row names; each fault as a line that names one.

    size: (height, width) that the folder's images have, or None where its header does not say.
    """
    lines: list[str] = []
    for name, colour, digest in (
        ("file_name", "RGB", "sha256"),
        ("mask_file_name", "grey", "mask_sha256"),
    ):
        if isinstance(row.get(name), str):
            path = folder / row[name]
            header, faults = png_faults(path, colour, size, row.get(digest))
            size = size if header is None else header.size  # a mask is as large as its image
            lines += [f"{path}: {fault}" for fault in faults]
    return lines


def absent_files(folder: Path, row: Row, size: tuple[int, int] | None) -> list[str]:
    """As `row_file_faults`, but no file is opened."""
    paths = [folder / row[name] for name in FILE_NAMES if isinstance(row.get(name), str)]
    return [f"{path}: missing" for path in paths if not path.is_file()]


def png_faults(
    path: Path, colour: str, size: tuple[int, int] | None, sha256: object
) -> tuple[PngHeader | None, list[str]]:
    """Check a PNG of 8 bits in `colour`, of `size` (height, width) and with a digest, if given.

    A grey one is a mask: only 0 and 255. Returns its header, None where it has none, and all its
    faults; of a file that cannot be decoded only that.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None, ["missing"]
    except OSError as error:
        return None, [f"cannot be read ({os.strerror(error.errno or 0)})"]
    if not data:
        return None, ["empty (0 bytes)"]
    if not data.startswith(PNG_START):
        return None, ["not a PNG"]
    if len(data) < 33 or not data.endswith(PNG_END):
        return None, ["cut short or damaged (its end is not that of a PNG)"]
    header = PngHeader(*struct.unpack(">IIBB", data[16:26]))
    if header.width * header.height > MAX_PIXELS:
        return header, [f"{header.width}x{header.height} px is over {MAX_PIXELS:,} pixels"]
    pixels = decoded(data)
    if pixels is None:
        return header, ["cut short or damaged (cannot be decoded)"]
    altered = isinstance(sha256, str) and hashlib.sha256(data).hexdigest() != sha256
    faults = ["altered (its SHA-256 is not that in its row)"] if altered else []
    return header, faults + list(pixel_faults(header, pixels, colour, size))


def pixel_faults(
    header: PngHeader, pixels: NDArray[np.generic], colour: str, size: tuple[int, int] | None
) -> Iterator[str]:
    """Say what is wrong with a decoded PNG: colours, size, levels of a mask."""
    kind = COLOURS.get(header.colour, f"of colour type {header.colour}")
    if (kind, header.bits) != (colour, 8):
        yield f"{kind}, {header.bits} bits; must be {colour}, 8 bits"
    elif colour == "grey" and not ((pixels == 0) | (pixels == 255)).all():
        yield "a mask with other levels than 0 and 255"
    if size is not None and header.size != size:
        yield (
            f"{header.width}x{header.height} px (width x height), "
            f"must be {size[1]}x{size[0]} as "
            f"{'its image' if colour == 'grey' else 'the folder says'}"
        )


def decoded(data: bytes) -> NDArray[np.generic] | None:
    """The pixels of a PNG, None where they cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image)
    except Exception:  # decoders raise anything on damaged bytes
        return None


# Files that no row names


def stray_files(folder: Path, below: str, expected: set[str]) -> Iterator[str]:
    """Name every file in `folder`/`below`, and deeper, that is not `expected`.

    expected: paths relative to `folder`. Links count as files.
    """
    if not (folder / below).is_dir():
        return
    with os.scandir(folder / below) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from stray_files(folder, f"{below}/{entry.name}", expected)
            elif f"{below}/{entry.name}" not in expected:
                yield f"{entry.path}: {stray_fault(entry.name)}"


def stray_fault(name: str) -> str:
    """Why a file of this name is one too many."""
    if name.startswith(".") and name.endswith(PARTIAL_SUFFIX):
        return "half-written by a command that was interrupted, or is running"
    if LOCK_NAME.fullmatch(name):
        return "the lock of a command that was interrupted, or is running"
    return "no row names it" if name.endswith(".png") else "does not belong in an SIA folder"


def stray_elsewhere(folder: Path, looked_at: set[str]) -> Iterator[str]:
    """Name the files outside shards/ and outside the folders of images/, masks/ `looked_at`."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            if path.name not in (HEADER_FILE, METADATA_FILE, CARD_FILE):
                yield f"{path}: {stray_fault(path.name)}"
        elif path.name in TREES:
            yield from stray_in_tree(folder, path.name, looked_at)
        elif path.name != SHARDS:
            yield from stray_files(folder, path.name, set())


def stray_in_tree(folder: Path, tree: str, looked_at: set[str]) -> Iterator[str]:
    """Name the files of images/ or masks/ that lie in none of its folders `looked_at`."""
    for path in sorted((folder / tree).iterdir()):
        if not path.is_dir():
            yield f"{path}: {stray_fault(path.name)}"
        elif path.name not in looked_at:
            yield from stray_files(folder, f"{tree}/{path.name}", set())

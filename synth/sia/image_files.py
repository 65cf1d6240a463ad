"""What is wrong with the image files of an SIA folder: one row's files, and files nobody named."""

import hashlib
import io
import os
import re
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synth.base.files import PARTIAL_SUFFIX
from synth.images import MAX_PIXELS
from synth.sia.rows import PATHS, Row

PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
"""The last chunk. Decoders do without it, so that only its absence shows a file cut at its end."""

COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
"""PNG colour types."""

LOCK_NAME = re.compile(r"\.\d+\.lock")

Size = tuple[int, int]
"""(height, width) in pixels."""


# The files of a row


def row_file_faults(folder: Path, row: Row, size: Size | None) -> list[str]:
    """Read, compare and decode the files that a row names; each fault as a line that names one.

    size: what the folder's images have, or None where its header does not say.
    """
    lines: list[str] = []
    for name, colour, digest in (
        ("file_name", "RGB", "sha256"),
        ("mask_file_name", "grey", "mask_sha256"),
    ):
        if isinstance(row.get(name), str):
            path = folder / row[name]
            found, faults = png_faults(path, colour, size, row.get(digest))
            size = found or size  # a mask is as large as its image
            lines += [f"{path}: {fault}" for fault in faults]
    return lines


def absent_files(folder: Path, row: Row, size: Size | None) -> list[str]:
    """As `row_file_faults`, but no file is opened."""
    paths = [folder / row[name] for name in PATHS if isinstance(row.get(name), str)]
    return [f"{path}: missing" for path in paths if not path.is_file()]


def png_faults(
    path: Path, colour: str, size: Size | None, sha256: object
) -> tuple[Size | None, list[str]]:
    """Check a PNG of 8 bits in `colour`, of `size` and with a digest, if given.

    A grey one is a mask: only 0 and 255. Returns its size, None where it has none, and all its
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
    width, height, bits, colour_type = struct.unpack(">IIBB", data[16:26])
    if width * height > MAX_PIXELS:
        return (height, width), [f"{width}x{height} px is over {MAX_PIXELS:,} pixels"]
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            pixels = np.asarray(image)
    except Exception:  # decoders raise anything on damaged bytes
        return (height, width), ["cut short or damaged (cannot be decoded)"]
    altered = isinstance(sha256, str) and hashlib.sha256(data).hexdigest() != sha256
    faults = ["altered (its SHA-256 is not that in its row)"] if altered else []
    kind = f"{COLOURS.get(colour_type, f'of colour type {colour_type}')}, {bits} bits"
    faults += pixel_faults(pixels, kind, colour, (height, width), size)
    return (height, width), faults


def pixel_faults(
    pixels: NDArray[np.generic], kind: str, colour: str, found: Size, size: Size | None
) -> Iterator[str]:
    """Say what is wrong with a decoded PNG: colours, size, levels of a mask."""
    if kind != f"{colour}, 8 bits":
        yield f"{kind}; must be {colour}, 8 bits"
    elif colour == "grey" and not ((pixels == 0) | (pixels == 255)).all():
        yield "a mask with other levels than 0 and 255"
    if size is not None and found != size:
        whose = "its image" if colour == "grey" else "the folder says"
        yield (f"{found[1]}x{found[0]} px (width x height), must be {size[1]}x{size[0]} as {whose}")


# Files that no row names


def stray_files(
    folder: Path, below: str, named: Collection[str], passed_over: Collection[str] = ()
) -> Iterator[str]:
    """Say of every file in `folder`/`below`, and deeper, that is not `named`, what it is.

    named, passed_over: files that belong there, and folders not to look into; paths relative to
    `folder`. Links count as files.
    """
    if not (folder / below).is_dir():
        return
    with os.scandir(folder / below) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{below}/{entry.name}".lstrip("/")
            if not entry.is_dir(follow_symlinks=False):
                if path not in named:
                    yield f"{folder / path}: {stray_fault(entry.name)}"
            elif path not in passed_over:
                yield from stray_files(folder, path, named, passed_over)


def stray_fault(name: str) -> str:
    """Why a file of this name is one too many."""
    if name.startswith(".") and name.endswith(PARTIAL_SUFFIX):
        return "half-written by a command that was interrupted, or is running"
    if LOCK_NAME.fullmatch(name):
        return "the lock of a command that was interrupted, or is running"
    return "no row names it" if name.endswith(".png") else "does not belong in an SIA folder"

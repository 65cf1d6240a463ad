"""A category's images in memory at one size, and contact sheets to look at."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from synth.images import Progress, read_image, resize

Image = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB."""
Images = NDArray[np.uint8]
"""uint8 [N, H, W, 3], RGB."""


def load_images(
    paths: Sequence[Path], size: tuple[int, int], progress: Progress | None = None
) -> Images:
    """Decode and resize images to `size` (height, width). Raises UserError if one is unreadable."""
    images = np.empty((len(paths), *size, 3), np.uint8)
    for number, path in enumerate(paths):
        images[number] = resize(read_image(path), size)
        if progress is not None:
            progress(number + 1, len(paths))
    return images


def all_grey(images: Images) -> bool:
    """Whether red, green and blue are equal in every pixel."""
    return bool((images[..., :1] == images[..., 1:]).all())


def digest(images: Images) -> str:
    """A fingerprint of the pixels, so that continued work notices changed data."""
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()[:16]


class SheetRow(NamedTuple):
    """One labelled row of a contact sheet; images are uint8 [H, W, 3] RGB or bool masks [H, W].

    captions: a few words below each image, or none at all.
    """

    label: str
    images: Sequence[NDArray[np.uint8] | NDArray[np.bool_]]
    captions: Sequence[str] = ()


LABEL_PX, CAPTION_PX, GAP_PX = 30, 22, 6
LABEL_SCALE, CAPTION_SCALE = 0.55, 0.42
FONT = cv2.FONT_HERSHEY_SIMPLEX


def contact_sheet(rows: Sequence[SheetRow], cell_px: int = 128) -> NDArray[np.uint8]:
    """Labelled rows of images on white, in cells of `cell_px` height: uint8 [H, W, 3] RGB."""
    strips = []
    for row in rows:
        cells = [cell(image, cell_px, GAP_PX) for image in row.images]
        if row.captions:
            cells = [captioned(c, text) for c, text in zip(cells, row.captions, strict=True)]
        strips.append(np.concatenate(cells, axis=1))
    labels = [cv2.getTextSize(row.label, FONT, LABEL_SCALE, 1)[0][0] + GAP_PX for row in rows]
    width = max(*labels, *(strip.shape[1] for strip in strips)) + GAP_PX
    sheet = []
    for row, strip in zip(rows, strips, strict=True):
        title = np.full((LABEL_PX, width, 3), 255, np.uint8)
        write(title, row.label, (GAP_PX, 21), LABEL_SCALE)
        padded = np.full((strip.shape[0], width, 3), 255, np.uint8)
        padded[:, GAP_PX : GAP_PX + strip.shape[1]] = strip
        sheet += [title, padded]
    return np.concatenate(sheet, axis=0)


def write(picture: NDArray[np.uint8], text: str, place: tuple[int, int], scale: float) -> None:
    """Write a dark line of text into a picture, its left end at `place` (x, y)."""
    cv2.putText(picture, text, place, FONT, scale, (40, 40, 40), 1, cv2.LINE_AA)


def captioned(picture: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """A cell with a line of text below it."""
    below = np.full((CAPTION_PX, picture.shape[1], 3), 255, np.uint8)
    write(below, text, (1, 9), CAPTION_SCALE)
    return np.concatenate([picture, below], axis=0)


def cell(image: NDArray[np.uint8] | NDArray[np.bool_], height: int, gap: int) -> NDArray[np.uint8]:
    """One image of a sheet at `height`, aspect kept, with a white gap at its right and below.

    Enlarged pixels stay visible as squares.
    """
    levels = image.astype(np.uint8) * np.uint8(255) if image.dtype == np.bool_ else image
    rgb = levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=2)
    width = max(1, round(rgb.shape[1] * height / rgb.shape[0]))
    scaled = cv2.resize(
        rgb.astype(np.uint8),
        (width, height),
        interpolation=cv2.INTER_AREA if height < rgb.shape[0] else cv2.INTER_NEAREST,
    )
    return np.asarray(
        cv2.copyMakeBorder(scaled, 0, gap, 0, gap, cv2.BORDER_CONSTANT, value=(255, 255, 255)),
        np.uint8,
    )

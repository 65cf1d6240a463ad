"""A category's images in memory at one size, and contact sheets to look at."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from synth.images import Progress, read_image, resize

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
    """One labelled row of a contact sheet; images are uint8 [H, W, 3] RGB or bool masks [H, W]."""

    label: str
    images: Sequence[NDArray[np.uint8] | NDArray[np.bool_]]


def contact_sheet(rows: Sequence[SheetRow], cell_px: int = 128) -> NDArray[np.uint8]:
    """Labelled rows of images on white, in cells of `cell_px` height: uint8 [H, W, 3] RGB."""
    label_px, gap = 30, 6
    strips = []
    for row in rows:
        cells = [cell(image, cell_px, gap) for image in row.images]
        strips.append((row.label, np.concatenate(cells, axis=1)))
    width = max(strip.shape[1] for _, strip in strips) + gap
    sheet = []
    for label, strip in strips:
        title = np.full((label_px, width, 3), 255, np.uint8)
        cv2.putText(
            title, label, (gap, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (40, 40, 40), 1, cv2.LINE_AA
        )
        padded = np.full((strip.shape[0], width, 3), 255, np.uint8)
        padded[:, gap : gap + strip.shape[1]] = strip
        sheet += [title, padded]
    return np.concatenate(sheet, axis=0)


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

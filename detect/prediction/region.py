"""A region of every image that never counts: an edge, a fixture, the background."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synth.base.errors import UserError
from synth.images import read_mask, resize

Region = NDArray[np.bool_]
"""bool [H, W], true where evidence is ignored; images of the same proportions take it."""

ASPECT_TOLERANCE = 0.02
"""Relative difference of width / height between a region and an image: rounding, not a rotation."""


def as_region(given: str | Path | Region) -> Region:
    """Read a mask image, in which every non-zero pixel is ignored, or check an array bool [H, W].

    Raises UserError for what is neither, and for a region that leaves nothing to look at.
    """
    region = read_mask(Path(given), None) if isinstance(given, str | Path) else given
    name = given if isinstance(given, str | Path) else "the array"
    if not (isinstance(region, np.ndarray) and region.dtype == np.bool_ and region.ndim == 2):
        raise UserError(
            f"ignore: got {type(given).__name__}, allowed are a mask image's path and bool [H, W]"
        )
    if region.all():
        raise UserError(
            f"ignore: {name} covers the whole image; only what is to be ignored may be non-zero"
        )
    return region


def require_aspect(region: Region, shape: tuple[int, ...], name: str) -> None:
    """Raise UserError unless an image of `shape`, (H, W, ...), has the region's proportions."""
    (H, W), (height, width) = region.shape, shape[:2]
    if abs(width * H / (height * W) - 1) > ASPECT_TOLERANCE:
        raise UserError(
            f"{name}: the image is {width}x{height} px, the region to ignore {W}x{H} px "
            "(width x height); both need the same proportions: draw the region on such an image"
        )


def at_size(region: Region, size: tuple[int, ...]) -> Region:
    """The region on a map: bool of `size` = (h, w), true wherever it touches a pixel."""
    return resize(region.astype(np.uint8) * np.uint8(255), (size[0], size[1])) > 0


def without(anomaly_map: NDArray[np.float32], region: Region) -> NDArray[np.float32]:
    """The map float32 [h, w] with its lowest score inside the region, so that no pool grows."""
    return np.where(at_size(region, anomaly_map.shape), anomaly_map.min(), anomaly_map)

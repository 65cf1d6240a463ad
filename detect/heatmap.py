"""Anomaly maps as pictures: one colour scale for many maps, overlays and mask outlines.

Shapes: H, W pixels of an image and of its map.
"""

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from synth.pictures import Image

STRIDE = 4  # heat_range looks at every fourth pixel of each axis: plenty for a quantile
MAX_OPACITY = 0.75  # the image stays visible under the strongest heat
OUTLINE_RGB = (0, 229, 255)  # cyan: no colour of the scale


class HeatRange(NamedTuple):
    """The scores at the two ends of the colour scale."""

    low: float
    high: float


def heat_range(maps: Iterable[npt.NDArray[np.floating]]) -> HeatRange:
    """Scale for a set of maps float [H, W]: from the median to the 99.9 % quantile of the pixels.

    Pixels below the median are background and stay clear; sizes may differ between maps.
    """
    pixels = np.concatenate([scores[::STRIDE, ::STRIDE].flatten() for scores in maps])
    low, high = np.quantile(pixels, [0.5, 0.999])
    return HeatRange(float(low), float(high))


def heat_picture(anomaly_map: npt.NDArray[np.floating], vmin: float, vmax: float) -> Image:
    """Colour a map float [H, W] with the Inferno scale over [vmin, vmax]: uint8 [H, W, 3], RGB."""
    heat = np.round(255 * _strength(anomaly_map, vmin, vmax)).astype(np.uint8)
    coloured = cv2.applyColorMap(heat, cv2.COLORMAP_INFERNO)  # [H, W, 3], BGR
    return np.asarray(cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB), np.uint8)


def overlay(image: Image, anomaly_map: npt.NDArray[np.floating], vmin: float, vmax: float) -> Image:
    """Lay the heat over its image; at vmin and below the image is untouched.

    image: uint8 [H, W, 3], RGB; anomaly_map: float [H, W]; vmin, vmax: the shared scale.
    Returns a new uint8 [H, W, 3]. Raises ValueError when the sizes differ.
    """
    _check_size(image, anomaly_map)
    opacity = MAX_OPACITY * _strength(anomaly_map, vmin, vmax)[..., None]  # [H, W, 1]
    mixed = (1 - opacity) * image + opacity * heat_picture(anomaly_map, vmin, vmax)
    return np.round(mixed).astype(np.uint8)


def outline(image: Image, mask: npt.NDArray[np.bool_]) -> Image:
    """Draw a cyan line with a dark rim around the regions of a mask bool [H, W], on a copy.

    The line lies outside the mask, so that nothing of the defect is covered; it is one pixel wide
    per 150 of the shorter side. Raises ValueError when the sizes differ.
    """
    _check_size(image, mask)
    width = max(1, round(min(mask.shape) / 150))
    line = _grown(mask, width)
    drawn = image.copy()
    drawn[_grown(line, 1) & ~line] = 0
    drawn[line & ~mask] = OUTLINE_RGB
    return drawn


def _grown(mask: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel), np.uint8) > 0


def _strength(
    anomaly_map: npt.NDArray[np.floating], vmin: float, vmax: float
) -> npt.NDArray[np.float32]:
    """Place each score on the scale, [0, 1]; an empty scale shows what lies above it."""
    if vmax <= vmin:
        return (anomaly_map > vmin).astype(np.float32)
    return np.clip((anomaly_map - vmin) / (vmax - vmin), 0, 1).astype(np.float32)


def _check_size(image: Image, other: npt.NDArray[np.generic]) -> None:
    if image.shape[:2] != other.shape:
        raise ValueError(f"got an image of {image.shape[:2]} and a map or mask of {other.shape}")

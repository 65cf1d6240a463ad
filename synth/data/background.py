"""Background by the image border: how far each pixel's colour is from the one the border has.

Shapes: H, W image size; B pixels of the border ring.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

BLUR = 1 / 256
"""Standard deviation of the blur against noise, as a share of the longer side."""

RING = 0.04
"""Width of the border ring, as a share of the shorter side."""

MAX_FIT_PIXELS = 1024
"""About as many pixels of the ring, evenly spread, are enough for four coefficients."""

MIN_DISTANCE = 3.0
"""Lab units below which a difference of colour is noise (one just noticeable is about 2.3)."""

MIN_AGREEMENT = 0.75
"""Share of the images that must show an object before a category counts as one of objects."""

MIN_AREA, MAX_AREA = 0.02, 0.95
"""Shares of the image that objects can have."""

MAX_BORDER_RATIO = 0.6
"""Share of foreground at the border over its share inside, at most; a texture has 1."""

EDGE = 0.02
"""How far from the outline, in shares of the shorter side, its inner and outer rims reach."""

MIN_EDGE_STEP = 0.5
"""Share of the rise from background to object that an outline has; a shading has less."""


def background_distance(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Measure the Lab distance to the background, float32 [H, W], in a uint8 [H, W, 3] RGB image.

    The background is the colour most of the border has, in each channel a function
    a + b·x + c·y + d·(x² + y²) of the place, for light that falls off to a side or to the corners.
    """
    blurred = cv2.GaussianBlur(image.astype(np.float32) / 255.0, (0, 0), BLUR * max(image.shape))
    lab = np.asarray(cv2.cvtColor(blurred, cv2.COLOR_RGB2LAB), np.float32)
    height, width = lab.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x**2 + y**2], axis=-1)  # [H, W, 4 terms]
    ring = border_ring((height, width))
    step = max(1, np.count_nonzero(ring) // MAX_FIT_PIXELS)
    surface = fit_majority(terms[ring][::step], lab[ring][::step])
    return np.linalg.norm(lab - terms @ surface, axis=-1)


def border_ring(size: tuple[int, int]) -> NDArray[np.bool_]:
    """Mark the pixels near the edges, bool [H, W], of an image of the size (H, W)."""
    width = max(1, round(RING * min(size)))
    ring = np.ones(size, np.bool_)
    ring[width:-width, width:-width] = False
    return ring


def fit_majority(terms: NDArray[np.float32], colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fit coefficients, float32 [4, 3], to colours ≈ terms · coefficients for most of the rows.

    Starts from the most frequent colour and refits to the half of the rows that fits best, so up to
    half of the border may belong to objects. terms: [B, 4]; colours: [B, 3].
    """
    surface = np.zeros((terms.shape[1], 3), np.float32)
    surface[0] = most_frequent(colours)
    for _ in range(10):
        error = np.linalg.norm(colours - terms @ surface, axis=1)
        best = error <= max(np.median(error), 1e-3)
        surface = np.linalg.lstsq(terms[best], colours[best], rcond=1e-3)[0]
    return surface


def most_frequent(colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pick the colour of [B, 3] with the least median distance to all others, float32 [3]."""
    some = colours[:: max(1, len(colours) // 256)]
    distances = np.linalg.norm(some[:, None] - some[None], axis=-1)
    return some[np.median(distances, axis=1).argmin()]


def pooled_threshold(distances: Sequence[NDArray[np.float32]]) -> float:
    """Set one threshold, Lab units, for the background distances, [H, W], of a category's images.

    Otsu's threshold would keep only the parts of an object that contrast most. Ours lies halfway,
    in ratio, from the noise of the background up to Otsu's, and not below a quarter of it, so that
    soft edges and faint shadows stay background.
    """
    otsu = float(threshold_otsu(np.concatenate([distance.ravel() for distance in distances])))
    border = np.concatenate([distance[border_ring(distance.shape)] for distance in distances])
    noise = float(np.quantile(border[border <= otsu], 0.95))
    return max(MIN_DISTANCE, (noise * otsu) ** 0.5, otsu / 4)


def shows_objects(
    masks: Sequence[NDArray[np.bool_]], distances: Sequence[NDArray[np.float32]]
) -> bool:
    """Tell whether foreground masks, [H, W] each, show objects rather than parts of a texture.

    Objects have a sensible area and a sharp outline in most of the images, and are rare at the
    border in all of them together. A texture is the same at the border as inside, a shading has no
    outline. One texture counts as seen beforehand, so that few images have to show it clearly.
    """
    outlined = [
        MIN_AREA <= mask.mean() <= MAX_AREA and edge_step(mask, distance) >= MIN_EDGE_STEP
        for mask, distance in zip(masks, distances, strict=True)
    ]
    rings = [border_ring(mask.shape) for mask in masks]
    at_border = sum(mask[ring].mean() for mask, ring in zip(masks, rings, strict=True))
    inside = sum(mask[~ring].mean() for mask, ring in zip(masks, rings, strict=True))
    ratio = at_border / max(inside, 1e-6)
    ratio = (len(masks) * ratio + 1) / (len(masks) + 1)
    return bool(np.mean(outlined) >= MIN_AGREEMENT and ratio <= MAX_BORDER_RATIO)


def edge_step(mask: NDArray[np.bool_], distance: NDArray[np.float32]) -> float:
    """Find how much of the rise from background to inner rim happens at the outline.

    About 1 for a sharp edge whatever its contrast, towards 0 for a shading.
    """
    width = 2 * max(1, round(EDGE * min(mask.shape))) + 1
    square = np.ones((width, width), np.uint8)
    levels = mask.astype(np.uint8)
    inner_rim = mask & (cv2.erode(levels, square) == 0)
    outer_rim = ~mask & (cv2.dilate(levels, square) > 0)
    if not inner_rim.any() or not outer_rim.any():
        return 0.0
    inner, outer = np.median(distance[inner_rim]), np.median(distance[outer_rim])
    rise = inner - np.median(distance[~mask])
    return float((inner - outer) / max(rise, 1e-6))

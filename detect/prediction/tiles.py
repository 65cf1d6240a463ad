"""Images of high resolution in overlapping tiles, whose maps are joined without seams.

Near a tile's border a network misses what lies beyond; there the neighbour counts instead. Over an
overlap of O pixels a tile's weight is 0 on its outer quarter, rises smoothly over the next half and
is 1 from there on; two neighbours' weights always add up to 1. Where a tile ends with the image it
has no neighbour and counts to the end.
Shapes: the image has H x W pixels, a tile h x w, along an axis `length` and `tile`.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from detect.heatmap import Image
from synth.base.errors import UserError
from synth.images import MIN_SIDE_PX

OVERLAP = 0.25
"""Least share of a tile that it has in common with the next, unless given."""
TileScorer = Callable[[Iterable[Image]], Iterator[NDArray[np.float32]]]
"""Tiles, uint8 [h, w, 3], to their maps float32 [h, w], in order."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How images are cut: tiles of `size` (height, width) in the images' own pixels.

    overlap: the least share of a tile that it has in common with the next, in [0, 0.5].
    """

    size: tuple[int, int]
    overlap: float = OVERLAP

    def __post_init__(self) -> None:
        if min(self.size) < MIN_SIDE_PX:
            raise UserError(
                f"tile size: got {self.size[0]} {self.size[1]}, both must be {MIN_SIDE_PX} pixels "
                "or more"
            )
        if not 0 <= self.overlap <= 0.5:
            raise UserError(f"overlap: got {self.overlap}, must lie between 0 and 0.5")


def tiled_map(image: Image, tiling: Tiling, score: TileScorer) -> NDArray[np.float32]:
    """The map of an image uint8 [H, W, 3] of any size, float32 [H, W], from the maps of its tiles.

    An image smaller than a tile is continued by its mirror image.
    """
    H, W = image.shape[:2]
    h, w = tiling.size
    padded = cv2.copyMakeBorder(
        image, 0, max(0, h - H), 0, max(0, w - W), cv2.BORDER_REFLECT_101
    )  # fmt: skip
    rows = tile_weights(padded.shape[0], h, tiling.overlap)
    columns = tile_weights(padded.shape[1], w, tiling.overlap)
    places = list(itertools.product(rows, columns))
    tiles = (np.asarray(padded[y : y + h, x : x + w], np.uint8) for (y, _), (x, _) in places)
    joined = np.zeros(padded.shape[:2], np.float32)
    for ((y, weight_y), (x, weight_x)), tile_map in zip(places, score(tiles), strict=True):
        joined[y : y + h, x : x + w] += weight_y[:, None] * weight_x * tile_map
    return joined[:H, :W]


def tile_weights(length: int, tile: int, overlap: float) -> list[tuple[int, NDArray[np.float32]]]:
    """Along one axis: where each tile starts, and its weights float32 [tile].

    The tiles lie evenly, the last ends with the image; at every pixel the weights add up to 1.
    """
    O = round(overlap * tile)  # noqa: E741
    starts = axis_starts(length, tile, O)
    weights = [border_weights(tile, O, s > 0, s + tile < length) for s in starts]
    total = np.zeros(length)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + tile] += weight
    return [
        (start, (weight / total[start : start + tile]).astype(np.float32))
        for start, weight in zip(starts, weights, strict=True)
    ]


def axis_starts(length: int, tile: int, overlap_px: int) -> list[int]:
    """As few starts as cover `length` pixels, neighbours sharing `overlap_px` pixels or more."""
    num = 1 + math.ceil((length - tile) / (tile - overlap_px))
    return [round(i * (length - tile) / max(1, num - 1)) for i in range(num)]


def border_weights(
    tile: int, overlap_px: int, has_before: bool, has_after: bool
) -> NDArray[np.float64]:
    """Weights float64 [tile] that fall towards the ends at which a neighbour takes over."""
    weight = np.ones(tile)
    if overlap_px == 0:
        return weight
    distance = np.arange(tile) + 0.5  # of a pixel's centre from the tile's end
    share = np.clip((distance - overlap_px / 4) / (overlap_px / 2), 0, 1)
    rise = 0.5 - 0.5 * np.cos(np.pi * share)
    return weight * (rise if has_before else 1) * (rise[::-1] if has_after else 1)

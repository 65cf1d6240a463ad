"""Which patches of an image are scored, and which of them are hidden from Global-Net together.

The patches lie on a grid, `stride` pixels apart. One hole hides k x k neighbours, and where
several holes lie in one image, m - 1 blocks of so many patches stay visible between them along each
axis. Shapes: images of H x W pixels; R x S patches in the grid.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from detect.methods.glancing.global_net import REACH_PX, GlobalNet
from detect.methods.glancing.local import ReceptiveField

Mode = Literal["lattice", "exact"]


class Hole(NamedTuple):
    """Pixels of a hole, the last ones excluded."""

    top: int
    left: int
    bottom: int
    right: int


class Hidden(NamedTuple):
    """Patches hidden together, int64 [K, 2] (row and column in the grid), and their holes."""

    patches: Tensor
    holes: tuple[Hole, ...]

    def mask(self, window: Hole) -> Tensor:
        """Return what is visible in a window of the image: float32 [1, 1, h, w] of 0 and 1."""
        top, left, bottom, right = window
        mask = torch.ones(1, 1, bottom - top, right - left)
        for hole in self.holes:
            rows = slice(max(hole.top - top, 0), max(hole.bottom - top, 0))
            columns = slice(max(hole.left - left, 0), max(hole.right - left, 0))
            mask[..., rows, columns] = 0
        return mask


@dataclass(frozen=True)
class Grid:
    """The patches of images of one size; `field` is what Local-Net sees of each."""

    image_size: tuple[int, int]
    field: ReceptiveField
    stride: int
    patches_per_hole: int
    """k, along each axis."""
    period: int
    """m, in blocks of k patches."""

    @property
    def shape(self) -> tuple[int, int]:
        """R and S."""
        H, W = self.image_size
        size, stride = self.field.size, self.stride
        return (H - size) // stride + 1, (W - size) // stride + 1

    def sets(self, mode: Mode) -> Iterator[Hidden]:
        """Yield sets of patches that are hidden together; each patch is in one of them."""
        k, m = self.patches_per_hole, self.period
        R, S = self.shape
        together = defaultdict(list)
        for row, column in product(range(0, R, k), range(0, S, k)):
            place = (row // k, column // k)
            key = place if mode == "exact" else (place[0] % m, place[1] % m)
            together[key].append((row, column))
        for blocks in together.values():
            yield self._hidden(blocks)

    def _hidden(self, blocks: list[tuple[int, int]]) -> Hidden:
        k, stride, size = self.patches_per_hole, self.stride, self.field.size
        R, S = self.shape
        patches, holes = [], []
        for row, column in blocks:
            last_row, last_column = min(row + k, R) - 1, min(column + k, S) - 1
            patches += product(range(row, last_row + 1), range(column, last_column + 1))
            bottom, right = last_row * stride + size, last_column * stride + size
            holes.append(Hole(row * stride, column * stride, bottom, right))
        return Hidden(torch.tensor(patches), tuple(holes))

    def cells(self, patches: Tensor, window: Hole) -> Tensor:
        """Return the cells of Global-Net over a window that lie nearest to patches' centres."""
        corner = torch.tensor([window.top, window.left])
        centres = patches * self.stride + (self.field.size - 1) / 2 - corner
        return (centres / GlobalNet.stride).round().long()

    def context(self, hidden: Hidden) -> Hole:
        """Return the pixels that what is told of one hole depends on, and no edge besides.

        A window of the same size for all, on Global-Net's cells, within the image.
        """
        (hole,) = hidden.holes
        step = GlobalNet.stride
        largest = (self.patches_per_hole - 1) * self.stride + self.field.size
        (top, bottom), (left, right) = (
            _window(start, side, -(-(largest + 2 * REACH_PX) // step) * step)
            for start, side in zip(hole[:2], self.image_size, strict=True)
        )
        return Hole(top, left, bottom, right)


def _window(start: int, side: int, length: int) -> tuple[int, int]:
    """Place a window round a hole that begins at `start`, within 0..side."""
    step = GlobalNet.stride
    first = max(0, (start - REACH_PX) // step * step)
    last_first = max(0, -(-(side - length) // step) * step)  # the last window may be shorter
    first = min(first, last_first)
    return first, min(first + length, side)

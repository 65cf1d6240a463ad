"""The mean image and the spectrum of a product, by the discrete cosine transform (DCT-II).

The transform runs over channels, rows and columns and is orthonormal: white noise stays white of
the same variance, and the variances of all coefficients add up to that of all pixels. Its cosines
need no periodic image, and are nearly the principal components of images whose statistics are the
same everywhere (Ahmed, Natarajan, Rao, 1974). Over the three channels the first component is
brightness, the other two colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from synth.base.errors import UserError

if TYPE_CHECKING:  # options name the kinds of prediction, and torch would hold up `--help`
    import torch
    from torch import Tensor

Tables = tuple[tuple[tuple[float, ...], ...], ...]
"""For each component of the channels a table by rows and columns, in [-1, 1] units."""

LEAST = 1 / 127.5
"""A coefficient that hardly varies counts as varying by one grey level."""
NUM_OF_MEAN = 32
"""Coefficients of the mean image along each side, the coarsest."""


@dataclass(frozen=True)
class Spectrum:
    """mean: coefficients of the mean image, NUM_OF_MEAN of each side, the others are 0.

    std: root mean square of what images differ from it by, a value for each band.
    """

    mean: Tables
    std: Tables

    def require_shape(self, channels: int, height: int, width: int) -> None:
        """Raise UserError unless these are finite numbers for images of this shape."""
        sides = {
            "mean": [min(side, NUM_OF_MEAN) for side in (height, width)],
            "std": [1 + int(bands(side)[-1]) for side in (height, width)],
        }
        for name, (rows, columns) in sides.items():
            tables = getattr(self, name)
            if [[len(row) for row in table] for table in tables] != [[columns] * rows] * channels:
                raise UserError(
                    f"spectrum: {name} must be {channels} tables of {rows} x {columns} values"
                )
            if not np.isfinite(tables).all() or (name == "std" and np.min(tables) < 0):
                raise UserError(f"spectrum: {name} has values that are not finite or negative")


def measure_spectrum(
    images: Sequence[NDArray[np.uint8]],
    num_channels: int,
    *,
    mirrored: tuple[bool, bool] = (False, False),
    turned: bool = False,
) -> Spectrum:
    """The spectrum of training images, uint8 [N, H, W, 3] of each category; these count alike.

    The mean of each band is shrunk by the share of its power that chance explains: that of a
    texture nearly vanishes, that of an object stays. mirrored (up and down, left and right),
    turned (by 90 degrees): how images are also shown.
    """
    from scipy.fft import dctn

    first, second = np.zeros(1), np.zeros(1)  # moments of the coefficients, [C, H, W]
    for part in images:
        share = 1 / (len(part) * len(images))
        for image in part:
            x = np.asarray(dctn(image[..., :num_channels] / 127.5 - 1, norm="ortho"))
            x = np.moveaxis(x, 2, 0)
            first, second = first + share * x, second + share * x**2
    if mirrored[0] or turned:
        first[:, 1::2] = 0
    if mirrored[1] or turned:
        first[:, :, 1::2] = 0
    if turned:
        first, second = ((one + one.swapaxes(1, 2)) / 2 for one in (first, second))
    num_images = sum(map(len, images))
    # The variance of the mean; of one image nobody knows it.
    error = first**2 if num_images == 1 else (second - first**2) / (num_images - 1)
    chance = _over_bands(error) / np.maximum(_over_bands(first**2), 1e-12)
    rows, columns = (bands(side) for side in first.shape[1:])
    mean = first * np.maximum(1 - chance, 0)[:, rows[:, None], columns]
    mean = mean[:, :NUM_OF_MEAN, :NUM_OF_MEAN].round(6)
    power = second.copy()
    coarse = np.s_[:, : mean.shape[1], : mean.shape[2]]
    power[coarse] += mean**2 - 2 * first[coarse] * mean
    std = np.sqrt(np.maximum(_over_bands(power), 0)).round(6)
    return Spectrum(frozen(mean.tolist()), frozen(std.tolist()))


def _over_bands(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over bands: [C, H, W] to [C, bands of rows, bands of columns]."""
    rows, columns = (
        one == np.arange(1 + one[-1])[:, None] for one in (bands(side) for side in x.shape[1:])
    )
    return rows @ x @ columns.T / (rows.sum(axis=1)[:, None] * columns.sum(axis=1))


def bands(side: int) -> NDArray[np.int64]:
    """The band of every frequency along one side, [side]: 0 is the mean, then half octaves.

    Frequency k is k half cycles over the side.
    """
    k = np.arange(side)
    return np.where(k < 2, k, np.floor(2 * np.log2(np.maximum(k, 1)) + 1e-9)).astype(np.int64)


def frozen(value: Any) -> Any:
    """Lists of any depth as tuples, in the values of an object too."""
    if isinstance(value, dict):
        return {name: frozen(one) for name, one in value.items()}
    return tuple(map(frozen, value)) if isinstance(value, list) else value


@cache
def mean_image(mean: Tables, height: int, width: int, device: torch.device) -> Tensor:
    """The mean image, float32 [C, H, W]."""
    import torch

    table = torch.tensor(mean)
    coefficients = torch.zeros(1, len(table), height, width)
    coefficients[0, :, : table.shape[1], : table.shape[2]] = table
    return to_pixels(coefficients.to(device))[0]


@cache
def deviations(std: Tables, height: int, width: int, device: torch.device) -> Tensor:
    """The standard deviation of every coefficient, float32 [C, H, W], LEAST or more."""
    import torch

    table = np.maximum(std, LEAST)[:, bands(height)[:, None], bands(width)]
    return torch.from_numpy(table).float().to(device)


def to_frequencies(x: Tensor) -> Tensor:
    """Coefficients of images, both float32 [N, C, H, W]."""
    channels, rows, columns = (dct_matrix(side, x.device) for side in x.shape[1:])
    return (channels @ (rows @ x @ columns.T).flatten(2)).view_as(x)


def to_pixels(coefficients: Tensor) -> Tensor:
    """Images of coefficients, both float32 [N, C, H, W]."""
    channels, rows, columns = (
        dct_matrix(side, coefficients.device) for side in coefficients.shape[1:]
    )
    return (channels.T @ (rows.T @ coefficients @ columns).flatten(2)).view_as(coefficients)


@cache
def dct_matrix(side: int, device: torch.device) -> Tensor:
    """The orthonormal DCT-II of vectors of this length, float32 [side, side]."""
    import torch
    from scipy.fft import dct

    return torch.from_numpy(dct(np.eye(side), axis=0, norm="ortho")).float().to(device)

"""The spectrum of images: how strong each frequency is, by the discrete cosine transform (DCT-II).

The transform runs over channels, rows and columns and is orthonormal: white noise stays white of
the same variance, and the variances of all coefficients add up to that of all pixels. Its cosines
need no periodic image, and are nearly the principal components of images whose statistics are the
same everywhere (Ahmed, Natarajan, Rao, 1974). Over the three channels the first component is
brightness, the other two colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # options name the kinds of prediction, and torch would hold up `--help`
    import torch
    from torch import Tensor

Spectrum = tuple[tuple[tuple[float, ...], ...], ...]
"""Standard deviations in [-1, 1] units: per component of the channels a table by the bands of rows
and columns."""

LEAST = 1 / 127.5
"""A coefficient that hardly varies counts as varying by one grey level."""


def measure_spectrum(
    images: Sequence[NDArray[np.uint8]], mu: float, num_channels: int, turned: bool = False
) -> Spectrum:
    """The root mean square of the coefficients of x_0 - mu in every band; categories count alike.

    images: uint8 [N, H, W, 3] of each category. turned: for images that are also shown turned by 90
    degrees, whose rows and columns count alike.
    """
    from scipy.fft import dctn

    power = np.zeros(1)
    for part in images:
        for image in part:
            x = image[..., :num_channels] / 127.5 - 1 - mu
            coefficients = np.asarray(dctn(x, norm="ortho"))  # [H, W, C]
            power = power + coefficients**2 / (len(part) * len(images))
    if turned:
        power = (power + power.swapaxes(0, 1)) / 2
    rows, columns = (
        one == np.arange(1 + one.max())[:, None] for one in map(bands, power.shape[:2])
    )
    mean = np.einsum("ih,hwc,jw->cij", rows, power, columns)
    std = np.sqrt(mean / rows.sum(axis=1)[:, None] / columns.sum(axis=1))
    return frozen(std.round(6).tolist())


def bands(side: int) -> NDArray[np.int64]:
    """The band of every frequency along one side, [side]: 0 is the mean, then half octaves.

    Frequency k is k half cycles over the side.
    """
    k = np.arange(side)
    return np.where(k < 2, k, np.floor(2 * np.log2(np.maximum(k, 1)) + 1e-9)).astype(np.int64)


def frozen(value: Any) -> Any:
    """Lists of any depth as tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


@cache
def deviations(spectrum: Spectrum, height: int, width: int, device: torch.device) -> Tensor:
    """The standard deviation of every coefficient, float32 [C, H, W], LEAST or more."""
    import torch

    std = np.maximum(spectrum, LEAST)[:, bands(height)[:, None], bands(width)]
    return torch.from_numpy(std).float().to(device)


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

"""Perlin masks: the field of `noise.pnoise2` as two small matrix products, rotated, thresholded.

Shapes: H, W image size; cy, cx lattice cells along y and x.
"""

from functools import cache

import cv2
import noise
import numpy as np
from numpy.typing import NDArray

PERIOD = 256
"""Lattice points after which the gradients of `noise.pnoise2` repeat, along each axis."""

MAX_EXPONENT = 5
MIN_CELL_PX = 8
"""RealNet draws up to 2^5 cells on 256 pixels; smaller images keep the smallest cell, 8 pixels."""

SCALE = 1.6**0.5
"""Matches the variance of RealNet's field.

RealNet's gradients have the length √2, those of pnoise2 a mean square length of 1.25: √(2 / 1.25).
Any monotone map of the field is a shift of the threshold, so this factor is the only freedom; the
coverage it gives is that of RealNet's field (mean 4.9 %, median 4.7 %), and 5.8 % of the masks are
empty instead of 5.2 %, because pnoise2 knows 8 gradients and RealNet a whole circle of them.
"""

THRESHOLD = 0.5


@cache
def lattice_gradients() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(G_x, G_y), each float32 [256, 256] indexed [y, x]: the gradients of `noise.pnoise2`.

    Read off the package's behaviour, not its tables: near a lattice point the field is its
    gradient times the distance, up to the fifth power of the distance.
    """
    step = 2.0**-10  # exact in float32 beside any lattice coordinate below 256
    points = range(PERIOD)
    g_x = [[round(noise.pnoise2(x + step, y) / step) for x in points] for y in points]
    g_y = [[round(noise.pnoise2(x, y + step) / step) for x in points] for y in points]
    return np.array(g_x, np.float32), np.array(g_y, np.float32)


@cache
def axis_weights(size: int, cells: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(W0, W1), each float32 [size, cells + 1]: pixel p lies at p·cells/size on the lattice axis.

    W0 is the quintic fade 1 − (6t⁵ − 15t⁴ + 10t³) of the distance t to the lattice point (0 from
    one cell on), W1 the fade times the signed distance.
    """
    distance = np.arange(size)[:, None] * cells / size - np.arange(cells + 1)
    t = np.minimum(np.abs(distance), 1.0)
    w0 = 1.0 - t**3 * (t * (t * 6.0 - 15.0) + 10.0)
    return w0.astype(np.float32), (w0 * distance).astype(np.float32)


def perlin_field(
    size: tuple[int, int], cells: tuple[int, int], offset: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Compute noise.pnoise2(x·cx/W + offset_x, y·cy/H + offset_y) at every pixel (octaves = 1).

    F = W0_y·G_x·W1_xᵀ + W1_y·G_y·W0_xᵀ, as the fade of "Improving Noise" (Perlin 2002)
    separates.

    size: (H, W), pixels. cells: (cy, cx). offset: integer [..., 2], lattice point (y, x) at the
    first pixel, one for each field of a batch. Returns float32 [..., H, W], within [−1, 1].
    """
    cells_y, cells_x = cells
    rows = (offset[..., 0, None] + np.arange(cells_y + 1)) % PERIOD  # [..., cy + 1]
    columns = (offset[..., 1, None] + np.arange(cells_x + 1)) % PERIOD  # [..., cx + 1]
    lattice = rows[..., :, None], columns[..., None, :]
    g_x, g_y = lattice_gradients()
    return gradient_field(size, g_x[lattice], g_y[lattice])


def gradient_field(
    size: tuple[int, int], g_x: NDArray[np.float32], g_y: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The field F of the gradients at lattice points, each float32 [..., cy + 1, cx + 1]."""
    height, width = size
    cells_y, cells_x = g_x.shape[-2] - 1, g_x.shape[-1] - 1
    w0_y, w1_y = axis_weights(height, cells_y)
    w0_x, w1_x = axis_weights(width, cells_x)
    # one product of inner length 2·(cy + 1) is faster than two and a sum
    left = np.concatenate([w0_y, w1_y], axis=1)
    right = np.concatenate([g_x @ w1_x.T, g_y @ w0_x.T], axis=-2)
    return np.matmul(left, right, dtype=np.float32)  # [..., H, W]


def perlin_mask(
    rng: np.random.Generator, size: tuple[int, int], *, official: bool = False
) -> NDArray[np.bool_]:
    """Draw a mask, bool [H, W]: where the rotated, scaled field exceeds 0.5. It may be empty.

    Source: RealNet, section 3.2 and its code: 2^e cells with e ~ U{0..5} for each axis, rotation by
    U(−90°, 90°) about the centre, bilinear, zero outside (so the corners it empties stay clear).

    rng draws, in this order: e_y, e_x; the lattice offset; the angle. size: (H, W), pixels.
    official: cells of any size, and gradients of all directions, drawn in place of the offset.
    """
    height, width = size
    limits = [MAX_EXPONENT, MAX_EXPONENT] if official else map(max_exponent, size)
    cells_y, cells_x = map(int, 2 ** rng.integers(0, [limit + 1 for limit in limits]))
    if official:
        turn = rng.uniform(0, 2 * np.pi, (cells_y + 1, cells_x + 1)).astype(np.float32)
        length = np.float32(2**0.5 / SCALE)
        field = gradient_field(size, length * np.cos(turn), length * np.sin(turn))
    else:
        field = perlin_field(size, (cells_y, cells_x), rng.integers(0, PERIOD, 2))
    angle = rng.uniform(-90.0, 90.0)
    centre = ((width - 1) / 2, (height - 1) / 2)
    rotation = cv2.getRotationMatrix2D(centre, angle, 1.0)
    rotated = cv2.warpAffine(field, rotation, (width, height), flags=cv2.INTER_LINEAR)
    return rotated > np.float32(THRESHOLD / SCALE)


def max_exponent(size_px: int) -> int:
    """Find the largest e, 0 to 5, for which 2^e cells on `size_px` pixels have 8 pixels or more."""
    return min(MAX_EXPONENT, max(0, (size_px // MIN_CELL_PX).bit_length() - 1))

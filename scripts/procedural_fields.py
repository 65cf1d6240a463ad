"""Fields that procedural textures are made of: float32 [S, S] grids of S pixels a side."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Generator = np.random.Generator
Field = NDArray[np.float32]


def gaussian(rng: Generator, size: int, amplitude: Callable[[Field, Field], Field]) -> Field:
    """Render a periodic Gaussian field with that Fourier amplitude, mean 0 and deviation 1."""
    v, u = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), np.float32))
    return unit(np.fft.irfft2(spectrum * amplitude(array(u), array(v)), s=(size, size)))


def smooth(rng: Generator, size: int, scale_px: float) -> Field:
    """Render a smooth Gaussian field with hills about scale_px wide, mean 0 and deviation 1."""
    decay = (math.pi * scale_px) ** 2 / 2
    return gaussian(rng, size, lambda u, v: array(np.exp(-decay * (u**2 + v**2))))


def along(u: Field, v: Field, angle: float) -> Field:
    """Fourier amplitude of fine grain that runs along `angle`."""
    a, b = turned(u, v, angle)
    return array(np.exp(-((a / 0.02) ** 2) - (b / 0.3) ** 2))


def draw_shaper(rng: Generator) -> Callable[[Field], Field]:
    """Draw what turns a Gaussian field into 0 to 1: left alone, in blotches, or as creases."""
    gain = rng.choice([0.22, rng.uniform(0.5, 3)])
    threshold, creased = rng.normal(0, 0.5) * (gain > 0.3), rng.random() < 0.2
    if creased:
        return lambda z: array(np.abs(z) * min(gain, 0.6))
    return lambda z: array(0.5 + 0.5 * np.tanh(2 * gain * (z - threshold)))


def voronoi(points: Field, size: int) -> tuple[Field, NDArray[np.int32]]:
    """Distance of each pixel to its nearest point [M, 2], and that point's number."""
    canvas = np.ones((size, size), np.uint8)
    inside = points[((points >= 0) & (points < size - 0.5)).all(axis=1)].round().astype(int)
    canvas[inside[:, 1], inside[:, 0]] = 0
    distance, label = cv2.distanceTransformWithLabels(
        canvas, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    return array(distance), np.asarray(label, np.int32)


def lattice(rng: Generator, size: int, spacing: float, jitter: float, hexagonal: bool) -> Field:
    """Points (x, y) [M, 2] of a square or hexagonal lattice, shaken by `jitter` spacings."""
    count = int(size / spacing) + 3
    rows, columns = np.mgrid[-1:count, -1:count].astype(np.float32)
    points = np.stack([columns + 0.5 * hexagonal * (rows % 2), rows], axis=-1).reshape(-1, 2)
    return array(spacing * (points + rng.random(2) + jitter * (rng.random(points.shape) - 0.5)))


def draw_leaf(
    canvas: Field,
    centre: NDArray[np.float64],
    radius: float,
    slim: float,
    angle: float,
    corners: int,
    level: float,
) -> None:
    """Draw an ellipse (no corners) or a polygon on the canvas."""
    turns = np.linspace(0, 2 * math.pi, corners or 16, endpoint=False)
    x, y = radius * np.cos(turns), radius * slim * np.sin(turns)
    outline = centre + np.stack(
        [x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)],
        axis=1,
    )
    cv2.fillPoly(canvas, [np.rint(outline * 8).astype(np.int32)], level, cv2.LINE_8, 3)


def axes(size: int, angle: float) -> tuple[Field, Field]:
    """Coordinates x and y in pixels along axes turned by `angle`."""
    rows, columns = np.indices((size, size), np.float32)
    return turned(columns, rows, angle)


def turned(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    """Coordinates of (x, y) along axes turned by `angle`."""
    c, s = math.cos(angle), math.sin(angle)
    return array(c * x + s * y), array(c * y - s * x)


def to_edge(cells: ArrayLike) -> Field:
    """Distance of a coordinate to the next whole number."""
    values = array(cells)
    return np.abs(values - np.round(values))


def unit(field: ArrayLike) -> Field:
    """Shift and scale to mean 0 and deviation 1; drop axes of length 1."""
    values = array(field).squeeze()
    return array((values - values.mean()) / (values.std() + 1e-6))


def blur(field: Field, sigma_px: float) -> Field:
    """Smooth each channel with a Gaussian."""
    return array(cv2.GaussianBlur(field, (0, 0), sigma_px))


def array(values: ArrayLike) -> Field:
    """Make an array of single precision."""
    return np.asarray(values, np.float32)

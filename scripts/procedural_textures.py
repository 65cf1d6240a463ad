"""Procedural materials: textures without a photograph, endlessly many samples of each.

A material is drawn once (its parameters are fixed) and rendered as often as wanted: samples of one
material differ as two views of one real surface do. Fields are float32 [S, S], about 0 to 1.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from procedural_fields import Field, Generator, array, axes, blur, smooth, unit
from procedural_patterns import FAMILIES, Renderer

Image = NDArray[np.uint8]


class Finish(NamedTuple):
    """What camera and light do to a material; the last three bound a sample's own variation."""

    blur_px: float
    noise_levels: float
    noise_px: float
    light: float
    gain: float
    offset_levels: float


class Material(NamedTuple):
    """A pattern, the colours of its values 0 to 1 (uint8-range float32 [256, 3]), a finish."""

    pattern: Renderer
    ramp: Field
    finish: Finish


def draw_palettes(rng: Generator, num_palettes: int) -> list[Field]:
    """Draw colour ramps, float32 [256, 3] in 0..255; every second one is grey.

    Several materials should share a ramp: told apart by colour alone, they would teach no texture.
    """
    return [_ramp(rng, grey=index % 2 == 0) for index in range(num_palettes)]


def draw_material(rng: Generator, ramp: Field) -> Material:
    """Draw a material in the colours of `ramp`: one pattern, or two mixed, and a finish."""
    pattern = _pattern(rng)
    if rng.random() < 0.35:
        pattern = _mixed(rng, pattern, _pattern(rng))
    if rng.random() < 0.25:
        pattern = _warped(rng, pattern)
    finish = Finish(
        blur_px=rng.choice([0.0, rng.uniform(0.4, 1.6)]),
        noise_levels=rng.choice([0.0, rng.uniform(1, 14)]),
        noise_px=rng.choice([0.0, rng.uniform(0.5, 1.2)]),
        light=rng.choice([0.0, rng.uniform(0, 0.15)]),
        gain=rng.uniform(0, 0.08),
        offset_levels=rng.uniform(0, 8),
    )
    return Material(pattern, ramp, finish)


def render(material: Material, rng: Generator, size_px: int) -> Image:
    """Render one sample: uint8 [S, S, 3], RGB; the same generator state gives the same bytes."""
    values = np.clip(material.pattern(rng, size_px), 0, 1) * 255
    image = material.ramp[np.rint(values).astype(np.uint8)]  # [S, S, 3]
    finish = material.finish
    if finish.blur_px:
        image = blur(image, finish.blur_px)
    if finish.noise_levels:
        noise = rng.standard_normal((size_px, size_px, 1), np.float32)
        if finish.noise_px:
            noise = unit(blur(noise, finish.noise_px))[..., None]
        image = image + finish.noise_levels * noise
    x, _ = axes(size_px, rng.uniform(0, 2 * math.pi))
    light = 1 + finish.light * rng.uniform(0, 1) * (x / size_px - 0.5)
    gain = 1 + finish.gain * rng.uniform(-1, 1)
    lit = image * (light * gain)[..., None] + finish.offset_levels * rng.uniform(-1, 1)
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)


# --- combining -----------------------------------------------------------------------------------


def _pattern(rng: Generator) -> Renderer:
    return FAMILIES[list(FAMILIES)[rng.integers(len(FAMILIES))]](rng)


def _mixed(rng: Generator, first: Renderer, second: Renderer) -> Renderer:
    share, multiply = rng.uniform(0.3, 0.9), rng.random() < 0.4

    def renderer(rng: Generator, size: int) -> Field:
        a, b = first(rng, size), second(rng, size)
        return array(a * (share + (1 - share) * b) if multiply else share * a + (1 - share) * b)

    return renderer


def _warped(rng: Generator, pattern: Renderer) -> Renderer:
    scale, reach = rng.uniform(5, 25), rng.uniform(1, 6)

    def renderer(rng: Generator, size: int) -> Field:
        field, (rows, columns) = array(pattern(rng, size)), np.indices((size, size), np.float32)
        x, y = (array(g + reach * smooth(rng, size, scale)) for g in (columns, rows))
        return array(cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))

    return renderer


def _ramp(rng: Generator, grey: bool) -> Field:
    """Three colours from dark to light, joined by straight lines."""
    low, high = np.sort(rng.uniform(0, 255, 2))
    levels = np.linspace(low, max(high, low + 40), 3)[:, None]
    tint = 0 if grey else rng.normal(0, 30, (1, 3)) + rng.normal(0, 20, (3, 3))
    colours = np.clip(levels + np.broadcast_to(tint, (3, 3)), 0, 255)
    grid = np.linspace(0, 2, 256)
    return array(np.stack([np.interp(grid, range(3), channel) for channel in colours.T], axis=1))

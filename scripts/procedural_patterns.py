"""Families of patterns: each draws its parameters once and returns a renderer of samples.

Two samples of one renderer differ as two places on one surface do. Values are about 0 to 1.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from procedural_fields import (
    Field,
    Generator,
    along,
    array,
    axes,
    blur,
    draw_leaf,
    draw_shaper,
    gaussian,
    lattice,
    smooth,
    to_edge,
    turned,
    voronoi,
)

Renderer = Callable[[Generator, int], Field]
"""Renders one sample of a fixed pattern: (rng, size_px) -> float32 [S, S]."""


def power_law(rng: Generator) -> Renderer:
    """Gaussian field with spectrum f^-beta between two frequencies, stretched along one axis."""
    beta, angle = rng.uniform(0.5, 3.2), rng.uniform(0, math.pi)
    stretch = rng.choice([1.0, math.exp(rng.uniform(0, 3))])
    low, high = math.exp(rng.uniform(-4.8, -3)), math.exp(rng.uniform(-2.3, -0.6))
    shape = draw_shaper(rng)

    def amplitude(u: Field, v: Field) -> Field:
        a, b = turned(u, v, angle)
        f = np.hypot(a * stretch, b) + 1e-6
        return array(
            f ** (-beta / 2) * (1 - np.exp(-((f / low) ** 2))) * np.exp(-((f / high) ** 2))
        )

    return lambda rng, size: shape(gaussian(rng, size, amplitude))


def gabor(rng: Generator) -> Renderer:
    """Gaussian field of one to three narrow bands: random waves of one length and heading."""
    bands = [
        (math.exp(rng.uniform(-3.4, -1.2)), rng.uniform(0, math.pi), rng.uniform(0.08, 0.4))
        for _ in range(rng.integers(1, 4))
    ]
    isotropic = rng.random() < 0.35
    shape = draw_shaper(rng)

    def amplitude(u: Field, v: Field) -> Field:
        total = np.zeros_like(u * v)
        for centre, angle, width in bands:
            a, b = (np.hypot(u, v), 0 * u) if isotropic else turned(u, v, angle)
            offset = np.hypot(np.abs(a) - centre, b)
            total += np.exp(-((offset / (width * centre)) ** 2)) / (width * centre)
        return array(total)

    return lambda rng, size: shape(gaussian(rng, size, amplitude))


def cellular(rng: Generator) -> Renderer:
    """Voronoi cells: shaded from their centres, flat, or outlined."""
    spacing, jitter = math.exp(rng.uniform(1.5, 3.3)), rng.uniform(0.1, 1)
    mode, joint = rng.choice(["shaded", "flat", "outlined", "both"]), int(rng.integers(1, 4))
    spread, hexagonal = rng.uniform(0.2, 1), rng.random() < 0.5

    def renderer(rng: Generator, size: int) -> Field:
        distance, label = voronoi(lattice(rng, size, spacing, jitter, hexagonal), size)
        flat = 0.5 + spread * (rng.random(label.max() + 1, np.float32)[label] - 0.5)
        shaded = 1 - distance / spacing
        numbers, brush = label.astype(np.float32), np.ones((joint + 1, joint + 1), np.uint8)
        edge = cv2.morphologyEx(numbers, cv2.MORPH_GRADIENT, brush) > 0
        values = {"shaded": shaded, "flat": flat, "outlined": 0.8 * flat, "both": flat * shaded}
        return np.where(edge & (mode in ("outlined", "both")), np.float32(0.05), values[mode])

    return renderer


def leaves(rng: Generator) -> Renderer:
    """Dead leaves: shapes of power-law sizes that cover each other, or lie apart on a ground."""
    smallest = rng.uniform(1.2, 4)
    largest, power = smallest * math.exp(rng.uniform(0.3, 2.3)), rng.uniform(1.5, 3.5)
    corners, spread = rng.choice([0, 0, 3, 4, 6]), rng.uniform(0.3, 1)
    slim, heading = rng.uniform(0.2, 1), rng.choice([0.1, math.pi])
    mean_area = (0.5 * (smallest + largest)) ** 2 * math.pi * slim
    cover = rng.choice([rng.uniform(0.05, 0.5), 3.0])

    def renderer(rng: Generator, size: int) -> Field:
        canvas = np.full((size, size), 0.5 if cover > 1 else 0.2, np.float32)
        count = min(int(cover * size * size / mean_area) + 1, 2500)
        tail = 1 - rng.random(count) * (1 - (largest / smallest) ** (1 - power))
        for radius in smallest * tail ** (1 / (1 - power)):
            level = float(0.5 + spread * (rng.random() - 0.5))
            centre, angle = rng.uniform(0, size, 2), rng.uniform(0, heading)
            draw_leaf(canvas, centre, radius, slim, angle, int(corners), level)
        return canvas

    return renderer


def bricks(rng: Generator) -> Renderer:
    """Rows of bricks or tiles with joints, each with its own level and slightly uneven."""
    height, ratio = rng.uniform(6, 30), rng.choice([1.0, 1.0, rng.uniform(1.3, 3.5)])
    shift, joint = rng.choice([0.0, 0.5, rng.random()]), rng.uniform(1, 3.5)
    angle, spread = rng.choice([0, math.pi / 2, rng.uniform(0, math.pi)]), rng.uniform(0, 0.5)
    bevel, mortar = rng.uniform(0, 0.25), rng.choice([0.05, 0.95])

    def renderer(rng: Generator, size: int) -> Field:
        x, y = axes(size, angle)
        rows = array(y / height + rng.random())
        columns = array(x / (height * ratio) + shift * np.floor(rows) + rng.random())
        i, j = np.floor(rows).astype(int) % 64, np.floor(columns).astype(int) % 64
        level = 0.55 + spread * (rng.random((64, 64), np.float32)[i, j] - 0.5)
        edge = np.minimum(to_edge(rows) * height, to_edge(columns) * height * ratio)
        face = level + bevel * (np.clip(edge / (0.5 * height), 0, 1) - 0.5)
        inside = np.clip(edge - joint / 2 + 0.5, 0, 1)
        return array(face * inside + mortar * (1 - inside))

    return renderer


def weave(rng: Generator) -> Renderer:
    """Threads over and under each other: plain or twill."""
    pitch, twill = rng.uniform(3, 14), int(rng.integers(2, 5))
    angle, depth = rng.choice([0, math.pi / 4, rng.uniform(0, math.pi)]), rng.uniform(0.1, 0.5)
    waviness, spread = rng.uniform(0, 0.15), rng.uniform(0, 0.2)

    def renderer(rng: Generator, size: int) -> Field:
        x, y = axes(size, angle)
        u = x / pitch + rng.random() + waviness * np.sin(y / pitch)
        v = y / pitch + rng.random() + waviness * np.sin(x / pitch)
        i, j = np.floor(u).astype(int), np.floor(v).astype(int)
        over = (i + j) % twill == 0
        across = np.where(over, to_edge(u), to_edge(v)) * 2
        threads = rng.normal(0, spread, (2, 128))
        tone = np.where(over, threads[0][i % 128], threads[1][j % 128])
        return array(np.sqrt(np.clip(across, 0, 1)) * (0.6 + 0.2 * over) + depth * tone)

    return renderer


def stripes(rng: Generator) -> Renderer:
    """Parallel stripes of one to three periods, sharp or soft."""
    angle = rng.uniform(0, math.pi)
    waves = [
        (math.exp(rng.uniform(1.1, 3.4)), rng.uniform(0.3, 1)) for _ in range(rng.integers(1, 4))
    ]
    sharpness, wobble = math.exp(rng.uniform(0, 2.5)), rng.choice([0, rng.uniform(0, 0.6)])

    def renderer(rng: Generator, size: int) -> Field:
        _, y = axes(size, angle)
        y = y + wobble * 6 * smooth(rng, size, 10)
        phases = rng.uniform(0, 2 * math.pi, len(waves))
        parts = [
            a * np.sin(2 * math.pi * y / p + f) for (p, a), f in zip(waves, phases, strict=True)
        ]
        return array(0.5 + 0.5 * np.tanh(sharpness * np.sum(parts, axis=0)))

    return renderer


def rings(rng: Generator) -> Renderer:
    """Wood: rings around a far centre, warped, with fine grain along them."""
    period, warp, grain = rng.uniform(4, 20), rng.uniform(0, 8), rng.uniform(0, 0.3)
    angle, distance, asymmetry = rng.uniform(0, math.pi), rng.uniform(0, 400), rng.uniform(0.5, 4)

    def renderer(rng: Generator, size: int) -> Field:
        x, y = axes(size, angle)
        radius = np.hypot(x / 4, y + distance + rng.uniform(0, 100)) + warp * smooth(rng, size, 20)
        phase = (radius / period) % 1
        fine = gaussian(rng, size, lambda u, v: along(u, v, angle))
        return array(0.15 + 0.7 * phase**asymmetry + grain * fine)

    return renderer


def speckle(rng: Generator) -> Renderer:
    """Round grains or pores of about one size, sparse or dense."""
    sigma, density = rng.uniform(0.6, 3), math.exp(rng.uniform(-2.5, 0.5))
    dark, sharp = rng.random() < 0.5, rng.uniform(1, 6)

    def renderer(rng: Generator, size: int) -> Field:
        chance = density / (2 * math.pi * sigma**2)
        hits = (rng.random((size, size)) < chance) * rng.uniform(0.3, 1, (size, size))
        spots = np.tanh(sharp * blur(array(hits), sigma) * 2 * math.pi * sigma**2 / 3)
        return array(0.85 - 0.8 * spots if dark else 0.15 + 0.8 * spots)

    return renderer


def fibres(rng: Generator) -> Renderer:
    """Bent hairs or scratches, in one heading or in all."""
    length, bend, thick = rng.uniform(8, 70), rng.uniform(0, 0.5), int(rng.integers(1, 3))
    heading, spread = rng.uniform(0, math.pi), rng.choice([0.05, 0.3, math.pi])
    density, contrast = rng.uniform(0.1, 1.2), rng.uniform(0.3, 1)

    def renderer(rng: Generator, size: int) -> Field:
        canvas = np.full((size, size), 0.5, np.float32)
        for _ in range(int(density * size * size / (length * thick * 2)) + 1):
            turns = heading + rng.uniform(-spread, spread) + np.cumsum(rng.normal(0, bend, 4))
            steps = np.stack([np.cos(turns), np.sin(turns)], axis=1) * length / 4
            path = np.cumsum(np.vstack([rng.uniform(-5, size + 5, (1, 2)), steps]), axis=0)
            level = float(0.5 + contrast * (rng.random() - 0.5))
            points = np.rint(path * 8).astype(np.int32)
            cv2.polylines(canvas, [points], False, level, thick, cv2.LINE_8, 3)
        return canvas

    return renderer


def plain(rng: Generator) -> Renderer:
    """Almost even surface with faint marks, as cast, ground or painted parts have."""
    depth, level = rng.uniform(0.02, 0.15), rng.uniform(0.2, 0.8)
    marks, cloud = power_law(rng), rng.uniform(6, 30)
    return lambda rng, size: array(
        level + depth * (marks(rng, size) - 0.5) + 0.5 * depth * smooth(rng, size, cloud)
    )


def ridges(rng: Generator) -> Renderer:
    """Cracked or veined: the zero lines of a smooth field."""
    scale, width, bright = rng.uniform(2.5, 12), rng.uniform(0.05, 0.4), rng.random() < 0.5

    def renderer(rng: Generator, size: int) -> Field:
        line = np.exp(-((smooth(rng, size, scale) / width) ** 2))
        tone = 0.1 * smooth(rng, size, 2 * scale)
        return array(0.2 + 0.7 * line + tone if bright else 0.8 - 0.7 * line + tone)

    return renderer


FAMILIES: dict[str, Callable[[Generator], Renderer]] = {
    "power_law": power_law,
    "gabor": gabor,
    "cellular": cellular,
    "leaves": leaves,
    "bricks": bricks,
    "weave": weave,
    "stripes": stripes,
    "rings": rings,
    "speckle": speckle,
    "fibres": fibres,
    "plain": plain,
    "ridges": ridges,
}

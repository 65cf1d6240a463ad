"""How well frozen features tell damage from normal variation, without training a detector.

Source: PatchCore (Roth et al., CVPR 2022), without its greedy bank: the distance of each patch to
the nearest of a random bank of normal patches; an image scores its largest distance.
Shapes: N images, C channels of layers 2 and 3 together, H x W cells of layer 2.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from procedural_textures import Generator, Image, draw_material, draw_palettes, render
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from detect.evaluation.metrics import auroc

Features = Callable[[Tensor], Sequence[Tensor]]
"""RGB float32 [N, 3, H, W] in [0, 1] -> the maps of layers 1, 2, 3."""

BANK_SIZE = 10_000
NUM_MATERIALS = 32
NUM_BANK, NUM_GOOD, NUM_DAMAGED = 40, 16, 16
SIZE_PX = 128
HELD_OUT = 7  # the stream of seeds of materials that no training sees


def held_out_auroc(features: Features, seed: int) -> float:
    """Mean image AUROC over procedural materials that training never saw, with painted damage."""
    palettes = draw_palettes(np.random.default_rng([seed, HELD_OUT]), NUM_MATERIALS)
    areas = []
    for index, ramp in enumerate(tqdm(palettes, desc="held-out materials", leave=False)):
        material = draw_material(np.random.default_rng([seed, HELD_OUT, index]), ramp)
        rng = np.random.default_rng([seed, HELD_OUT, index, 1])
        count = NUM_BANK + NUM_GOOD + NUM_DAMAGED
        views = [render(material, rng, SIZE_PX) for _ in range(count)]
        damaged = [damage(view, rng) for view in views[NUM_BANK + NUM_GOOD :]]
        test = [*views[NUM_BANK : NUM_BANK + NUM_GOOD], *damaged]
        labels = np.arange(len(test)) >= NUM_GOOD
        areas.append(auroc(labels, score(features, views[:NUM_BANK], test, rng)))
    return float(np.mean(areas))


@torch.inference_mode()
def score(
    features: Features, normal: Sequence[Image], test: Sequence[Image], rng: Generator
) -> NDArray[np.float64]:
    """Score each test image by its patch farthest from the normal ones: float64 [N]."""
    bank = patches(features, normal).flatten(0, 1)  # [N H W, C]
    mean, scale = bank.mean(0), bank.std(0).clamp(min=1e-6)
    chosen = rng.permutation(len(bank))[:BANK_SIZE]
    bank = (bank[torch.from_numpy(chosen)] - mean) / scale
    test_patches = (patches(features, test) - mean) / scale
    nearest = [torch.cdist(image, bank).amin(1).amax() for image in test_patches]
    return torch.stack(nearest).double().numpy()


@torch.inference_mode()
def patches(features: Features, images: Sequence[Image]) -> Tensor:
    """Describe each cell of layer 2 by its 3 x 3 neighbourhood in layers 2 and 3: [N, H W, C]."""
    parts = []
    for start in range(0, len(images), 16):
        batch = torch.from_numpy(np.stack(images[start : start + 16])).permute(0, 3, 1, 2) / 255
        _, layer2, layer3 = (F.avg_pool2d(f.float(), 3, 1, 1) for f in features(batch))
        up = F.interpolate(layer3, size=layer2.shape[-2:], mode="bilinear", align_corners=False)
        parts.append(torch.cat([layer2, up], dim=1).flatten(2).transpose(1, 2))
    return torch.cat(parts)


def damage(image: Image, rng: Generator) -> Image:
    """Paint one small fault: a scratch, a stain, a worn spot, a turned piece or a pit."""
    size = len(image)
    before = image.astype(np.float32)
    kind = rng.choice(["scratch", "stain", "worn", "turned", "pit"])
    shift = np.float32(rng.uniform(30, 80) * rng.choice([-1, 1]))
    if kind == "scratch":
        weight, after = _scratch(size, rng), before + shift
    elif kind == "stain":
        weight, after = _blob(size, rng.uniform(6, 14), 2.0, rng), before + 0.6 * shift
    elif kind == "worn":
        weight, after = _blob(size, rng.uniform(8, 16), 1.5, rng), _blur(before, 3.0)
    elif kind == "turned":
        weight, after = _blob(size, rng.uniform(8, 16), 0.5, rng), np.rot90(before)
    else:
        weight, after = _blob(size, rng.uniform(2.5, 5), 0.7, rng), 0.4 * before + shift
    mixed = before + weight[..., None] * (after - before)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _scratch(size: int, rng: Generator) -> NDArray[np.float32]:
    turns = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.2, 6))
    steps = rng.uniform(4, 10) * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    path = rng.uniform(0.25, 0.75, 2) * size + np.cumsum(steps, axis=0)
    canvas = np.zeros((size, size), np.uint8)
    cv2.polylines(canvas, [np.rint(path).astype(np.int32)], False, 255, int(rng.integers(1, 3)))
    return _blur(canvas / 255, 0.6)


def _blob(size: int, radius: float, edge_px: float, rng: Generator) -> NDArray[np.float32]:
    angles = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    radii = radius * (
        1 + 0.25 * np.cos(np.outer([2, 3], angles) + rng.uniform(0, 6, (2, 1))).sum(0)
    )
    outline = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    centre = rng.uniform(radius, size - radius, 2)
    canvas = np.zeros((size, size), np.uint8)
    cv2.fillPoly(canvas, [np.rint(centre + outline).astype(np.int32)], 255)
    return _blur(canvas / 255, edge_px)


def _blur(field: ArrayLike, sigma_px: float) -> NDArray[np.float32]:
    blurred = cv2.GaussianBlur(np.asarray(field, np.float32), (0, 0), sigma_px)
    return np.asarray(blurred, np.float32)

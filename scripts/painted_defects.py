"""How a detector does on kinds of defect that no anomaly source draws, without a test split.

    python scripts/painted_defects.py --models runs/detector --dataset mtd --root mtd

Cracks, spots, shading and chips are painted on the held-out normal images, one kind on each image;
the figure is the AUROC between these and the held-out images as they are, for several sides of the
window that an image is judged by. The first model's images are drawn into painted.png. For choices
that the test split must not make: the window of the smaller presets was chosen so.
Shapes: H x W pixels; sizes of defects are in pixels at 256.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from detect.checkpoint import TrainedDetector, load_detector
from detect.evaluation.metrics import auroc
from detect.pooling import image_scores, pooling_window
from detect.scoring import detector_scorer
from synth.command import progress_bar, say
from synth.data.catalog import open_category
from synth.data.normals import load_normals
from synth.device import default_device
from synth.images import write_png
from synth.pictures import Images, SheetRow, contact_sheet

WINDOWS = (1, 2, 4, 8, 16, 32)
SHEET_IMAGES = 8

Field = NDArray[np.float32]
"""float32 [H, W]."""
Rng = np.random.Generator


class Paint(NamedTuple):
    """Grey levels to add, or to reach where `covers`, and how much of it where: [H, W] in 0..1."""

    level: float | Field
    weight: Field
    covers: bool = False


def crack(shape: tuple[int, int], at: tuple[float, float], rng: Rng) -> Paint:
    """A wandering line of 1 to 2 px, mostly dark."""
    unit, fine = min(shape) / 256, 4
    heading, point, points = rng.uniform(0, 2 * np.pi), np.array(at), [np.array(at)]
    for _ in range(int(rng.uniform(10, 35))):
        heading += rng.normal(0, 0.25)
        point = point + 4 * unit * np.array([np.cos(heading), np.sin(heading)])
        points.append(point)
    canvas = np.zeros((shape[0] * fine, shape[1] * fine), np.uint8)
    line = np.rint(np.array(points) * fine).astype(np.int32)
    cv2.polylines(canvas, [line], False, 255, max(1, int(rng.uniform(3, 8) * unit)))
    weight = cv2.resize(canvas, shape[::-1], interpolation=cv2.INTER_AREA)
    sign = rng.choice([-1, -1, -1, 1])
    return Paint(float(rng.uniform(20, 60) * sign), weight.astype(np.float32) / 255)


def spot(shape: tuple[int, int], at: tuple[float, float], rng: Rng) -> Paint:
    """A round blot of 2 to 7 px radius with a soft edge."""
    y, x = np.indices(shape, np.float32)
    radius = rng.uniform(2, 7) * min(shape) / 256
    along, across = (x - at[0]) / radius, (y - at[1]) / (radius * rng.uniform(0.6, 1.6))
    weight = np.exp(-((along**2 + across**2) ** 2)).astype(np.float32)
    return Paint(float(rng.uniform(25, 70) * rng.choice([-1, -1, 1])), weight)


def shade(shape: tuple[int, int], at: tuple[float, float], rng: Rng) -> Paint:
    """Uneven light over a third of the image or more, without an edge; it lies anywhere."""
    cells = int(rng.integers(5, 7))
    coarse = rng.normal(size=(cells, cells)).astype(np.float32)
    smooth = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    weight = cv2.GaussianBlur(np.clip((smooth - 0.5) * 3, 0, 1), (0, 0), min(shape) / 40)
    return Paint(float(rng.uniform(15, 40) * rng.choice([-1, 1])), weight)


def chip(shape: tuple[int, int], at: tuple[float, float], rng: Rng) -> Paint:
    """A lobed patch of 8 to 28 px radius in another grey with a fine grain, more or less opaque."""
    y, x = np.indices(shape, np.float32)
    angle = np.arctan2(y - at[1], x - at[0])
    waves = rng.normal(0, 0.2, 6)
    lobes = sum(q * np.cos((n + 2) * angle + 9 * q) for n, q in enumerate(waves))
    radius = rng.uniform(8, 28) * min(shape) / 256 * (1 + lobes)
    inside = (np.hypot(x - at[0], y - at[1]) < radius).astype(np.float32)
    level = (rng.uniform(30, 225) + rng.normal(0, 8, shape)).astype(np.float32)
    weight = cv2.GaussianBlur(inside, (0, 0), 1) * np.float32(rng.uniform(0.3, 1))
    return Paint(level, weight, covers=True)


PAINTERS: dict[str, Callable[[tuple[int, int], tuple[float, float], Rng], Paint]] = {
    "crack": crack,
    "spot": spot,
    "shade": shade,
    "chip": chip,
}


def painted(images: Images, foregrounds: NDArray[np.bool_], kind: str, seed: int) -> Images:
    """Paint a defect of a kind on each image, uint8 [N, H, W, 3], somewhere on its foreground."""
    results = []
    for n, (image, foreground) in enumerate(zip(images, foregrounds, strict=True)):
        rng = np.random.default_rng([seed, list(PAINTERS).index(kind), n])
        rows, columns = np.nonzero(foreground)
        chosen = rng.integers(len(rows))
        paint = PAINTERS[kind](foreground.shape, (float(columns[chosen]), float(rows[chosen])), rng)
        weight = paint.weight[..., None]
        level = np.asarray(paint.level, np.float32)
        level = level[..., None] if level.ndim else level
        ground = image.astype(np.float32) * (1 - weight if paint.covers else 1)
        results.append(np.clip(np.rint(ground + level * weight), 0, 255).astype(np.uint8))
    return np.stack(results)


def scores(trained: TrainedDetector, images: Images) -> dict[int, NDArray[np.float32]]:
    """Score the images by each window."""
    score = detector_scorer(trained.detector, default_device())
    maps = torch.from_numpy(np.concatenate([score(image[None]).maps for image in images]))
    H, W = trained.image_size
    return {side: image_scores(maps, pooling_window(H, W, side)).numpy() for side in WINDOWS}


def main(
    models: list[Path],
    dataset: str,
    root: Path,
    category: str | None = None,
    out: Path = Path("painted.png"),
    seed: int = 0,
) -> None:
    """Print image AUROCs by kind of painted defect and by window.

    Args:
        models: Detectors of one category, as `detect train` writes them.
        dataset: Layout of the data, as for `detect train`.
        root: Folder of the data.
        category: Category below the root.
        out: Picture of the painted images.
        seed: Of the defects.

    """
    opened = open_category(dataset, root, category, progress_bar)
    for place, model in enumerate(models):
        trained = load_detector(model, default_device())
        normals = load_normals(opened, trained.image_size, progress_bar)
        rule = normals.foreground_rule("auto")
        foregrounds = np.stack([rule.apply(image) for image in normals.held])
        kinds = {kind: painted(normals.held, foregrounds, kind, seed) for kind in PAINTERS}
        if place == 0:
            sheet = {"held-out": normals.held, **kinds}
            rows = [SheetRow(name, images[:SHEET_IMAGES]) for name, images in sheet.items()]
            write_png(out, contact_sheet(rows))
        good = scores(trained, normals.held)
        bad = {kind: scores(trained, images) for kind, images in kinds.items()}
        labels = np.repeat([False, True], len(normals.held))
        for side in WINDOWS:
            found = {
                kind: auroc(labels, np.concatenate([good[side], own[side]]))
                for kind, own in bad.items()
            }
            words = " ".join(f"{kind} {value:.3f}" for kind, value in found.items())
            mean = np.mean(list(found.values()))
            say(f"{model} window {side:2d} of 256 px: {words} mean {mean:.3f}")


if __name__ == "__main__":
    tyro.cli(main)

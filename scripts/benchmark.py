"""Speed and memory of the pieces that must not be the bottleneck: python scripts/benchmark.py

All figures are of one run on one machine, with as many threads as OMP_NUM_THREADS says unless a
line says otherwise; times of short work are medians. `--only perlin metrics` measures some parts.
The comparison with anomalib runs where that is installed (CONTRIBUTING.md), and says so otherwise.
"""

import argparse
import importlib.util
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import cv2
import noise
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from detect.evaluation.metrics import pixel_metrics
from detect.training.data import BlendedDataset
from detect.training.sources import Part, open_source
from synth.base.progress import no_bars
from synth.base.seeding import generator
from synth.data.foreground import ForegroundRule
from synth.diffusion.config import PRESETS
from synth.diffusion.ddpm import build_unet, noise_schedule
from synth.diffusion.prediction import Denoised
from synth.diffusion.sdas import sample_sdas
from synth.perlin import perlin_mask
from synth.sia.reader import Item, SiaHeader, write_sia

SIZE = (256, 256)


class Figure(NamedTuple):
    """One measured figure and what it should be."""

    name: str
    value: float
    unit: str
    goal: str = ""


class Skipped(Exception):
    """Why a part cannot be measured here."""


def median_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of `work` after one run to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def texture(index: int) -> np.ndarray:
    """A smooth coloured texture with a sensor's noise: about 115 kB as PNG, as a real product's."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 256, (33, 33, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)


def mask_seconds() -> float:
    """Seconds for one of our Perlin masks of 256x256."""
    rng = np.random.default_rng(0)
    return median_seconds(lambda: [perlin_mask(rng, SIZE) for _ in range(200)]) / 200


def perlin(work: Path) -> list[Figure]:
    """256x256 masks per second on one core, against a loop over `noise.pnoise2` for one field."""

    def loop() -> list[float]:
        return [noise.pnoise2(x / 16, y / 16) for y in range(SIZE[0]) for x in range(SIZE[1])]

    with threadpool_limits(1):
        ours, theirs = mask_seconds(), median_seconds(loop, 3)
    return [
        Figure("Perlin masks, 256x256, one thread", 1 / ours, "masks/s"),
        Figure("loop over noise.pnoise2, one field", 1 / theirs, "fields/s"),
        Figure("  speed-up", theirs / ours, "times", "8 or more"),
    ]


def anomalib_perlin(work: Path) -> list[Figure]:
    """The same against anomalib's field, and its field rotated and thresholded as it does it."""
    if importlib.util.find_spec("anomalib") is None:
        raise Skipped("anomalib is not installed")
    from anomalib.data.utils.generators import perlin

    rotate = perlin.PerlinAnomalyGenerator().perlin_rotation_transform
    cpu, num_threads = torch.device("cpu"), torch.get_num_threads()

    def fields() -> list[torch.Tensor]:
        return [perlin.generate_perlin_noise(*SIZE, device=cpu) for _ in range(50)]

    def masks() -> list[torch.Tensor]:
        return [rotate(field[None])[0] > 0.5 for field in fields()]

    with threadpool_limits(1):
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        field, mask, ours = median_seconds(fields) / 50, median_seconds(masks) / 50, mask_seconds()
        torch.set_num_threads(num_threads)
    return [
        Figure(f"anomalib {version('anomalib')}, fields, one thread", 1 / field, "fields/s"),
        Figure("  our masks against its fields", field / ours, "times", "8 or more"),
        Figure("  our masks against its rotated masks", mask / ours, "times", "8 or more"),
    ]


def blended_samples(work: Path) -> list[Figure]:
    """Training samples per second of one worker at 256 px, everything cached that can be."""
    normals = np.stack([texture(n) for n in range(64)])
    folder = write_noise_images(work / "noise", 200, (128, 128))
    source = open_source([Part("sia", folder)]).load((256, 256), False, no_bars)
    dataset = BlendedDataset(normals, ForegroundRule(method="everything"), source, seed=0)
    seconds = median_seconds(lambda: [dataset[n] for n in range(400)], 3)
    name = "blended training samples, 256 px, one worker"
    return [Figure(name, 400 / seconds, "samples/s", "150 or more")]


def write_noise_images(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """A small SIA folder of noise images."""

    def items(indices: Sequence[int]) -> list[Item]:
        rng = np.random.default_rng(0)
        return [
            Item(i, rng.integers(0, 256, (*size, 3), dtype=np.uint8), None, {}) for i in indices
        ]

    write_sia(folder, SiaHeader("source", "benchmark", "noise", {}), count, items)
    return folder


def sampler_overhead(work: Path) -> list[Figure]:
    """Share of the sampler's time that is not spent in the U-Net (preset tiny, batch 16, fp32)."""
    config = replace(PRESETS["tiny"].unet, mu=0.0, sigma_data=0.5)
    unet = build_unet(config).eval().to(memory_format=torch.channels_last)
    inside = 0.0

    prediction, alpha_bar = config.predicted, noise_schedule().alpha_bar

    def denoiser(x: torch.Tensor, t: torch.Tensor) -> Denoised:
        nonlocal inside
        start = time.perf_counter()
        output = unet(x.contiguous(memory_format=torch.channels_last), t).sample
        inside += time.perf_counter() - start
        return prediction.read(output, x, alpha_bar[t])

    generators = [generator(0, index) for index in range(16)]
    start = time.perf_counter()
    shape = (config.num_channels, *config.image_size)
    sample_sdas(denoiser, noise_schedule(20), shape, [0.1] * 16, generators)
    total = time.perf_counter() - start
    return [Figure("sampling outside the U-Net", 100 * (total - inside) / total, "%", "under 5")]


def metrics(work: Path) -> list[Figure]:
    """Pixel AUROC, AP and AUPRO over 200 maps of 256x256 with blob-like defects, together."""
    rng = np.random.default_rng(0)
    maps = rng.random((200, *SIZE), dtype=np.float32)
    masks = np.zeros(maps.shape, bool)
    for mask in masks[:120]:
        y, x = rng.integers(0, 200, 2)
        height, width = rng.integers(8, 56, 2)
        mask[y : y + height, x : x + width] = True
    maps += masks * 0.3
    seconds = median_seconds(lambda: pixel_metrics(list(masks), list(maps)), 3)
    return [Figure("pixel AUROC, AP and AUPRO, 200 maps 256x256", seconds, "s", "1 or less")]


PARTS: dict[str, Callable[[Path], list[Figure]]] = {
    "perlin": perlin,
    "anomalib": anomalib_perlin,
    "blending": blended_samples,
    "sampler": sampler_overhead,
    "metrics": metrics,
}
"""Each part gets an empty folder to work in."""


def main() -> None:
    """Measure everything, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark.json"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    figures: list[Figure] = []
    for name in options.only:
        try:
            with tempfile.TemporaryDirectory() as work:
                measured = PARTS[name](Path(work))
        except Skipped as reason:
            print(f"{name}: skipped, {reason}", flush=True)
            continue
        for figure in measured:
            print(
                f"{figure.name:58} {figure.value:10.2f} {figure.unit:10} {figure.goal}", flush=True
            )
        figures += measured
    about = {
        "date": date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"about": about, "figures": [f._asdict() for f in figures]}, indent=2)
    )
    print(f"figures: {options.out}")


if __name__ == "__main__":
    main()

"""Speed and memory of the pieces that must not be the bottleneck: python scripts/benchmark.py

All figures are of one run on one machine; times of repeated work are medians.
"""

import argparse
import itertools
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import noise
import numpy as np
import torch

from detect.data import BlendedDataset
from detect.metrics import pixel_metrics
from detect.sources import SiaSource
from synth.config import PRESETS, UNetConfig
from synth.ddpm import build_unet, noise_schedule
from synth.foreground import ForegroundRule
from synth.perlin import perlin_mask
from synth.sdas import sample_sdas
from synth.seeding import generator
from synth.sia import Item, SiaHeader, open_sia, write_sia

SIZE = (256, 256)


class Figure(NamedTuple):
    """One measured figure and what it should be."""

    name: str
    value: float
    unit: str
    goal: str


def median_seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of `work` after one run to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def perlin() -> list[Figure]:
    """256x256 masks per second on one core, against a loop over `noise.pnoise2` for one field."""
    rng = np.random.default_rng(0)
    ours = median_seconds(lambda: [perlin_mask(rng, SIZE) for _ in range(200)]) / 200

    def loop() -> list[float]:
        return [noise.pnoise2(x / 16, y / 16) for y in range(SIZE[0]) for x in range(SIZE[1])]

    theirs = median_seconds(loop, 3)
    return [
        Figure("Perlin masks, 256x256", 1 / ours, "masks/s", ""),
        Figure("loop over noise.pnoise2, one field", 1 / theirs, "fields/s", ""),
        Figure("speed-up", theirs / ours, "times", "8 or more"),
    ]


def blended_samples(folder: Path) -> list[Figure]:
    """Training samples per second of one worker at 256 px, everything cached that can be."""
    rng = np.random.default_rng(0)
    normals = rng.integers(0, 256, (64, *SIZE, 3), dtype=np.uint8)
    sources = SiaSource(open_sia(write_noise_images(folder, 200, (128, 128))))
    dataset = BlendedDataset(normals, ForegroundRule(method="everything"), sources, seed=0)
    seconds = median_seconds(lambda: [dataset[n] for n in range(400)], 3)
    return [
        Figure(
            "blended training samples, 256 px, one worker",
            400 / seconds,
            "samples/s",
            "150 or more",
        )
    ]


def write_noise_images(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """A small SIA folder of noise images."""

    def items(indices: Iterator[int]) -> list[Item]:
        rng = np.random.default_rng(0)
        return [
            Item(i, rng.integers(0, 256, (*size, 3), dtype=np.uint8), None, {}) for i in indices
        ]

    write_sia(folder, SiaHeader("source", "benchmark", "noise", {}), count, items)
    return folder


def sampler_overhead() -> list[Figure]:
    """Share of the sampler's time that is not spent in the U-Net (preset tiny, batch 16, fp32)."""
    config = PRESETS["tiny"].unet
    unet = build_unet(config).eval().to(memory_format=torch.channels_last)
    inside = 0.0

    def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal inside
        start = time.perf_counter()
        output = unet(x.contiguous(memory_format=torch.channels_last), t).sample
        inside += time.perf_counter() - start
        return output

    generators = [generator(0, index) for index in range(16)]
    start = time.perf_counter()
    shape = (config.num_channels, *config.image_size)
    sample_sdas(denoiser, noise_schedule(20), shape, [0.1] * 16, generators)
    total = time.perf_counter() - start
    return [
        Figure("sampling outside the U-Net", 100 * (total - inside) / total, "%", "under 5"),
        Figure("SDAS images, preset tiny, 64 px, fp32", 16 / total, "images/s", ""),
    ]


def metrics() -> list[Figure]:
    """Pixel AUROC, AP and AUPRO over 200 maps of 256x256 with blob-like defects, together."""
    rng = np.random.default_rng(0)
    maps = rng.random((200, *SIZE), dtype=np.float32)
    masks = np.zeros(maps.shape, bool)
    for mask in masks[:120]:
        y, x, h, w = (
            rng.integers(0, 200),
            rng.integers(0, 200),
            rng.integers(8, 56),
            rng.integers(8, 56),
        )
        mask[y : y + h, x : x + w] = True
    maps += masks * 0.3
    seconds = median_seconds(lambda: pixel_metrics(list(masks), list(maps)), 3)
    return [Figure("pixel AUROC, AP and AUPRO, 200 maps 256x256", seconds, "s", "1 or less")]


def generate_images(folder: Path, count: int) -> None:
    """Generate with a very small untrained network: the memory is that of the loop."""
    config = UNetConfig(
        image_size=(16, 16),
        block_channels=(16, 16),
        head_channels=16,
        norm_groups=8,
        num_channels=1,
    )
    unet, schedule = build_unet(config).eval(), noise_schedule(20)

    def items(indices: Iterator[int]) -> Iterator[Item]:
        while batch := list(itertools.islice(indices, 50)):
            generators = [generator(0, index) for index in batch]
            strengths = [0.1] * len(batch)
            x = sample_sdas(
                lambda x, t: unet(x, t).sample, schedule, (1, 16, 16), strengths, generators
            )
            levels = ((x + 1) * 127.5).byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
            for index, image in zip(batch, levels.numpy(), strict=True):
                yield Item(index, image, None, {"seed": 0, "strength": 0.1, "num_steps": 20})

    write_sia(folder, SiaHeader("source", "benchmark", "tiny", {}), count, items)


def memory() -> list[Figure]:
    """Peak memory of a process that generates 200 and one that generates 2,000 images."""
    peaks = []
    for count in (200, 2000):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--generate", folder, str(count)]
            peaks.append(
                float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            )
    return [
        Figure("peak memory, 200 images generated", peaks[0], "MiB", ""),
        Figure("peak memory, 2,000 images generated", peaks[1], "MiB", "the same"),
    ]


def main() -> None:
    """Measure everything, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark.json"))
    parser.add_argument("--generate", nargs=2, metavar=("FOLDER", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:  # the process whose memory is measured
        generate_images(Path(options.generate[0]), int(options.generate[1]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in (
            memory,  # first: a child's peak counts from its parent's size
            perlin,
            lambda: blended_samples(Path(folder)),
            sampler_overhead,
            metrics,
        ):
            for figure in part():
                print(
                    f"{figure.name:46} {figure.value:10.2f} {figure.unit:10} {figure.goal}",
                    flush=True,
                )
                figures.append(figure)
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

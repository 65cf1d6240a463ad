"""Parts of scripts/benchmark.py that write and read folders; also the processes that they measure.

`python scripts/benchmark_folders.py images FOLDER COUNT` and `... generate FOLDER COUNT`.
"""

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # tests/ has the server and the tiny model

from synth.data.catalog import Category, Record  # noqa: E402
from synth.data.normals import Normals  # noqa: E402
from synth.images import write_png  # noqa: E402
from synth.perlin import perlin_mask  # noqa: E402
from synth.sia.export import export_sia  # noqa: E402
from synth.sia.reader import Item, SiaHeader, write_sia  # noqa: E402
from synth.sia.validate import validate_sia  # noqa: E402

SIZE = (256, 256)
NUM_PUBLISHED = 10_000


class Figure(NamedTuple):
    """One measured figure and what it should be."""

    name: str
    value: float
    unit: str
    goal: str = ""


class Used(NamedTuple):
    """What a process took."""

    seconds: float
    peak_mib: float


# Images to work with


def texture(index: int) -> np.ndarray:
    """A smooth coloured texture with a sensor's noise: about 115 kB as PNG, as a real product's."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 256, (33, 33, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)


def write_images(folder: Path, count: int) -> None:
    """A blended folder: `count` images of 256x256, of 50 textures, with Perlin masks."""
    textures = [texture(n) for n in range(50)]

    def items(indices: Iterator[int]) -> Iterator[Item]:
        for index in indices:
            mask = perlin_mask(np.random.default_rng(index), SIZE)
            row = {"seed": 0, "opacity": 0.7, "normal_file": "a.png", "source_index": index}
            yield Item(index, np.roll(textures[index % 50], index, axis=1), mask, row)

    config = {"method": "blend", "seed": 0, "opacity": [0.5, 1.0], "image_size": list(SIZE)}
    write_sia(folder, SiaHeader("blended", "folder", "texture", config), count, items)


def generate_images(folder: Path, count: int) -> None:
    """Generate with a very small untrained network: the memory is that of the loop."""
    from synth.base.seeding import generator
    from synth.diffusion.config import UNetConfig
    from synth.diffusion.ddpm import build_unet, noise_schedule
    from synth.diffusion.sdas import sample_sdas

    config = UNetConfig(
        image_size=(16, 16),
        block_channels=(16, 16),
        attention_levels=(1,),
        head_channels=16,
        norm_groups=8,
        num_channels=1,
    )
    unet, schedule = build_unet(config).eval(), noise_schedule(20)
    read, alpha_bar = config.predicted.read, noise_schedule().alpha_bar

    def items(indices: Iterator[int]) -> Iterator[Item]:
        while batch := list(itertools.islice(indices, 50)):
            generators = [generator(0, index) for index in batch]
            strengths = [0.1] * len(batch)
            x = sample_sdas(
                lambda x, t: read(unet(x, t).sample, x, alpha_bar[t]),
                schedule,
                (1, 16, 16),
                strengths,
                generators,
            )
            levels = ((x + 1) * 127.5).byte().permute(0, 2, 3, 1).expand(-1, -1, -1, 3)
            for index, image in zip(batch, levels.numpy(), strict=True):
                yield Item(index, image, None, {"seed": 0, "strength": 0.1, "num_steps": 20})

    write_sia(folder, SiaHeader("source", "benchmark", "tiny", {}), count, items)


CHILDREN: dict[str, Callable[[Path, int], None]] = {
    "images": write_images,
    "generate": generate_images,
}


LAUNCH = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, *sys.argv[1:]]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""A small parent in between: a process's peak counts from the size of the one that starts it."""


def process(*command: str, **environment: str) -> Used:
    """Run a Python process; its time and its own peak memory. Its output is shown if it fails."""
    start = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-c", LAUNCH, *command],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ended.returncode:
        raise RuntimeError(f"{command}: {ended.stdout}")
    peak_kib = int(ended.stdout.split()[-1])
    return Used(time.perf_counter() - start, peak_kib / 1024)


# Parts


def memory(work: Path) -> list[Figure]:
    """Peak memory of a process that generates 200 and one that generates 2,000 images."""
    small, large = (process(__file__, "generate", str(work / n), n) for n in ("200", "2000"))
    return [
        Figure("peak memory, 200 images generated", small.peak_mib, "MiB"),
        Figure("peak memory, 2,000 images generated", large.peak_mib, "MiB", "the same"),
    ]


def publish(work: Path) -> list[Figure]:
    """`synth publish` of 10,000 images: the Parquet files alone, then sending them to loopback."""
    from tests.hub_server import TOKEN, running_hub

    folder = work / "published"
    process(__file__, "images", str(folder), str(NUM_PUBLISHED))
    publish = ("-m", "synth", "publish", str(folder), "--repo", "me/data")
    publish += ("--licence", "cc0-1.0", "--staging", str(work / "staging"))
    built = process(*publish, "--dry-run", HF_HOME=str(work / "home"))
    with running_hub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        sent = process(*publish, HF_HOME=str(work / "home"), NO_PROXY="127.0.0.1", **environment)
        num_bytes = sum(len(content) for content in hub.objects.values())
    shutil.rmtree(folder)
    about = f"{NUM_PUBLISHED:,} images, {num_bytes / 2**30:.1f} GiB"
    return [
        Figure(f"Parquet of {about}: time", built.seconds, "s"),
        Figure("  peak memory", built.peak_mib, "MiB", "1024 or less"),
        Figure("  sending it to a server on this machine: time", sent.seconds, "s"),
        Figure("  peak memory of the sender", sent.peak_mib, "MiB", "1024 or less"),
    ]


def png(work: Path) -> list[Figure]:
    """Images of 256x256 that the PNG writer puts on disk, by threads."""
    images = [texture(n) for n in range(100)]
    figures = []

    def write(n: int) -> None:
        write_png(work / f"{n}.png", images[n % 100])

    for num_threads in (1, 2):
        with ThreadPoolExecutor(num_threads) as pool:
            start = time.perf_counter()
            list(pool.map(write, range(200)))
            rate = 200 / (time.perf_counter() - start)
        figures.append(Figure(f"PNG writer, 256x256, {num_threads} thread(s)", rate, "images/s"))
    return figures


def validate(work: Path) -> list[Figure]:
    """Images of 256x256, with masks, that `synth validate` reads, digests and decodes."""
    figures = []
    write_images(work / "blended", 400)
    for num_threads in (1, 2):
        start = time.perf_counter()
        verdict = validate_sia(work / "blended", print, num_threads=num_threads)
        rate = verdict.num_images / (time.perf_counter() - start)
        assert verdict == (400, 0)
        name = f"synth validate, image and mask, {num_threads} thread(s)"
        figures.append(Figure(name, rate, "images/s"))
    return figures


def export(work: Path) -> list[Figure]:
    """Files of the mvtec layout that `synth export` places: hard links, and normals written."""
    write_images(work / "blended", 400)
    normals = np.stack([texture(n) for n in range(100)])
    records = [Record(Path(f"{n}.png"), "train", "good", None) for n in range(100)]
    category = Category("folder", "texture", tuple(records))
    loaded = Normals(category, records[:90], normals[:90], records[90:], normals[90:])
    start = time.perf_counter()
    done = export_sia(work / "blended", "mvtec", work / "export", loaded)
    seconds = time.perf_counter() - start
    assert done.num_linked == 800
    name = "synth export, mvtec: 800 links and 100 normals"
    return [Figure(name, done.num_files / seconds, "files/s")]


def generation(work: Path) -> list[Figure]:
    """`synth generate` with the preset tiny, 64 px: images per second, waits for the writer."""
    from synth.diffusion.config import PRESETS, SdasConfig
    from synth.diffusion.model import load_model
    from synth.sia.generate import generate_sia
    from tests.tiny import write_model

    model = load_model(write_model(work / "model", PRESETS["tiny"].unet), "cpu")
    written = generate_sia(model, SdasConfig(), work / "drawn", 32, batch_size=16)
    share = 100 * written.waited_seconds / written.seconds
    rate = written.num_images / written.seconds
    return [
        Figure("synth generate, tiny, 64 px, fp32, one process", rate, "images/s"),
        Figure("  the sampler waits for the writer", share, "%", "below 1"),
    ]


if __name__ == "__main__":
    CHILDREN[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))

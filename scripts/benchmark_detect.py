"""Speed and memory of the detectors: python scripts/benchmark_detect.py

All figures are of one run on one machine with as many threads as OMP_NUM_THREADS says; times are
medians. Backbones have random weights: nothing is downloaded, and the time is the same. "plain" is
the network as it stands: eager, contiguous, float32. Every network is timed in a process of its
own, so that its peak memory is its own.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch

from detect.detector import Batch
from detect.exporting.formats import onnx_session, quiet, write_onnx
from detect.exporting.graph import INPUT, record
from detect.methods.realnet import PRESETS, RealNet
from detect.packing import packed
from detect.training.data import BlendedDataset
from detect.training.sources import AnomalySource, LoadedPart
from synth.base.backbones import build_backbone
from synth.base.device import fastest_precision
from synth.base.memory import keeping_freed_memory, steady_malloc
from synth.blend import OPACITY
from synth.data.foreground import ForegroundRule

SIZE_PX = 256
ARITHMETIC = ("plain", "fp32", "bf16", "onnxruntime")
PARTS = ("loading", "training", *ARITHMETIC)


class Job(NamedTuple):
    """One network in one arithmetic, or one training."""

    part: str
    preset: str
    batch_size: int
    size_px: int
    repeats: int
    threads: int


class Figure(NamedTuple):
    """One measurement."""

    preset: str
    part: str
    batch_size: int
    value: float
    unit: str
    peak_mib: float
    num_parameters: int


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall time of `work` after one run to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def build(preset: str, size_px: int) -> RealNet:
    """A preset with random weights whose reconstruction is not zero."""
    config = PRESETS[preset]
    backbone_config = replace(config.backbone, weights="random")
    config = replace(config, backbone=backbone_config, image_size=(size_px, size_px))
    backbone = build_backbone(backbone_config)
    indices = [
        torch.arange(kept) for kept in config.num_selected
    ]  # as many channels as AFS would keep
    model = RealNet(config, backbone, indices)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.reconstruction.parameters():
            if parameter.dim() == 4 and not parameter.any():
                parameter.normal_(std=0.01, generator=rng)
    return model


def smooth_images(count: int, size_px: int) -> torch.Tensor:
    """Seeded smooth images, float32 [N, 3, H, W] in [0, 1]."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(size_px, size_px), mode="bilinear")


# --- the parts -----------------------------------------------------------------------------------


def scoring(job: Job) -> tuple[float, int]:
    """Milliseconds per image."""
    model = build(job.preset, job.size_px).eval()
    num_parameters = sum(p.numel() for p in model.parameters())
    images = smooth_images(job.batch_size, job.size_px)
    if job.part == "onnxruntime":
        work = onnx_work(model, images)
    else:
        detector = model if job.part == "plain" else packed(model, job.part)  # pyright: ignore
        work = lambda: detector.predict(images)  # noqa: E731
    seconds = median_seconds(work, job.repeats)
    return 1000 * seconds / job.batch_size, num_parameters


def onnx_work(model: RealNet, images: torch.Tensor) -> Callable[[], object]:
    """Scoring of the exported network, its preprocessing included."""
    pixels = (images * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "detector.onnx"
        write_onnx(record(model, model.config.image_size), path, {})
        session = onnx_session(path)
    return lambda: session.run(None, {INPUT: pixels})


def training(job: Job) -> tuple[float, int]:
    """Samples per second of whole steps: forward, backward, Adam, in the faster arithmetic.

    Half of the images are blended; the features of the normal ones are known, as after one epoch.
    """
    model = build(job.preset, job.size_px).train()
    device = torch.device("cpu")
    bf16 = fastest_precision(device) == "bf16"
    (stage,) = model.stages()
    optimizer = stage.optimizer(stage.trained(), lr=stage.lr)
    normal = smooth_images(job.batch_size, job.size_px)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        model.remember([*(normal * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()])
    mask = torch.zeros(job.batch_size, job.size_px, job.size_px, dtype=torch.bool)
    mask[::2, : job.size_px // 4, : job.size_px // 4] = True
    image = torch.where(mask.unsqueeze(1), 1 - normal, normal)
    batch = Batch(image, normal, mask, torch.arange(job.batch_size))

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = torch.stack(list(stage.loss(batch, torch.Generator()).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with keeping_freed_memory():  # as in `run_steps`
        seconds = median_seconds(step, job.repeats)
    return job.batch_size / seconds, sum(p.numel() for p in model.parameters())


def loading(job: Job) -> tuple[float, int]:
    """Blended training samples per second of one worker with one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    shape = (job.size_px, job.size_px, 3)
    normals = rng.integers(0, 256, (16, *shape), dtype=np.uint8)
    sources = rng.integers(0, 256, (16, *shape), dtype=np.uint8)
    dataset = BlendedDataset(
        normals,
        ForegroundRule(method="everything"),
        AnomalySource([LoadedPart(lambda rng, _: sources[rng.integers(16)], OPACITY, 1.0)]),
        seed=0,
    )
    count = 64
    seconds = median_seconds(lambda: [dataset[n] for n in range(count)], job.repeats)
    return count / seconds, 0


def measure(job: Job) -> Figure:
    """Do one job in this process, which does nothing else."""
    torch.set_num_threads(job.threads)
    if job.part != "plain":
        steady_malloc()  # as commands do
    work, unit = {"loading": (loading, "samples/s"), "training": (training, "samples/s")}.get(
        job.part, (scoring, "ms per image")
    )
    value, num_parameters = work(job)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    return Figure(job.preset, job.part, job.batch_size, value, unit, peak_mib, num_parameters)


# --- the run -------------------------------------------------------------------------------------


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """What to measure, in order."""
    common = (options.size_px, options.repeats, torch.get_num_threads())
    if "loading" in options.only:
        yield Job("loading", "any", 1, *common)
    for preset in options.presets:
        if "training" in options.only:
            yield Job("training", preset, options.training_batch, *common)
        for part in ARITHMETIC:
            if part in options.only:
                for batch_size in options.batch_sizes:
                    yield Job(part, preset, batch_size, *common)


def markdown(figures: Sequence[Figure]) -> str:
    """The table, and how much faster than plain each is."""
    plain = {(f.preset, f.batch_size): f.value for f in figures if f.part == "plain"}
    lines = [
        "| preset | parameters | what | batch | value | times faster than plain | peak memory |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for f in figures:
        base = plain.get((f.preset, f.batch_size))
        faster = f"{base / f.value:.1f}" if base and f.unit == "ms per image" else ""
        parameters = f"{f.num_parameters / 1e6:.1f} M" if f.num_parameters else ""
        lines.append(
            f"| {f.preset} | {parameters} | {f.part} | {f.batch_size} | {f.value:.4g} {f.unit} | "
            f"{faster} | {f.peak_mib:.0f} MiB |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_detect.json"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--presets", nargs="+", default=["paper", "compact", "small"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--training-batch", type=int, default=16)
    parser.add_argument("--size-px", type=int, default=SIZE_PX)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="tiny, 64 px, one repeat: does it run at all"
    )
    options = parser.parse_args()
    if options.quick:
        options.presets, options.size_px, options.repeats = ["tiny"], 64, 1
        options.batch_sizes, options.training_batch = [1, 2], 2
    return options


def main() -> None:
    """Measure everything, print a table, write JSON and the table beside it."""
    options = arguments()
    for preset in [name for name in options.presets if name not in PRESETS]:
        print(f"{preset}: skipped, no such preset; there are {', '.join(PRESETS)}", flush=True)
        options.presets.remove(preset)
    figures: list[Figure] = []
    for job in jobs(options):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                figures.append(pool.submit(measure, job).result())
            except Exception as error:  # of memory, mostly: the others are still worth having
                reason = (str(error) or type(error).__name__).splitlines()[0]
                print(f"{job.preset}, {job.part}, batch {job.batch_size}: failed, {reason}")
                continue
        last = figures[-1]
        print(
            f"{last.preset:10} {last.part:12} batch {last.batch_size:3} "
            f"{last.value:10.2f} {last.unit:12} {last.peak_mib:8.0f} MiB",
            flush=True,
        )
    about = {
        "date": date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "image_px": options.size_px,
    }
    table = markdown(figures)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"about": about, "figures": [f._asdict() for f in figures]}, indent=2)
    )
    options.out.with_suffix(".md").write_text(table + "\n")
    print(f"\n{table}\n\nfigures: {options.out}")


if __name__ == "__main__":
    main()

"""Speed and memory of the pieces that must not be the bottleneck: python scripts/benchmark.py

All figures are of one run on one machine, with as many threads as OMP_NUM_THREADS says unless a
line says otherwise; times of short work are medians. `--only perlin metrics` measures some parts.
The comparison with anomalib runs where that is installed (CONTRIBUTING.md), and says so otherwise.

Networks have random weights: nothing is downloaded, and the time is the same. "plain" is the
network as it stands: eager, contiguous, float32. Each is timed in a process of its own, so that its
peak memory is its own. Flows are timed alone, on random features of EfficientNet-B5's shape;
diffusion models at their presets' sizes, with what the preset predicts and with the noise.
"""

import argparse
import importlib.util
import json
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import cv2
import noise
import numpy as np
import torch
from accelerate import Accelerator
from threadpoolctl import threadpool_limits
from torch import nn

from detect.data.samples import BlendedDataset
from detect.data.sources import Part, open_source
from detect.detector import ADAM, Batch
from detect.evaluation.metrics import pixel_metrics
from detect.exporting.formats import quiet, read_onnx, write_onnx
from detect.exporting.graph import record
from detect.methods import csflow, validflow
from detect.methods.flow import ALPHA, Mapped, negative_log_likelihood
from detect.methods.realnet import PRESETS as REALNETS
from detect.methods.realnet import RealNet
from detect.packing import packed
from synth.base.backbones import build_backbone
from synth.base.device import fastest_precision
from synth.base.memory import keeping_freed_memory, steady_malloc
from synth.base.progress import no_bars
from synth.base.seeding import generator
from synth.data.foreground import ForegroundRule
from synth.diffusion.config import PRESETS, TrainConfig
from synth.diffusion.ddpm import build_unet, noise_schedule
from synth.diffusion.model import DiffusionModel
from synth.diffusion.prediction import Denoised
from synth.diffusion.sampling import sample_images
from synth.diffusion.sdas import sample_sdas
from synth.diffusion.spectrum import measure_spectrum
from synth.diffusion.training import Learner
from synth.perlin import perlin_mask
from synth.sia.reader import Item, SiaHeader, write_sia

SIZE = (256, 256)
REALNET_PARTS = ("training", "plain", "fp32", "bf16", "onnxruntime")
FLOW_PARTS = ("training fp32", "training bf16", "plain", "fp32", "bf16")
DIFFUSION_PARTS = ("training fp32", "training bf16", "fp32", "bf16")
DDPM = "diffusion"
THEIRS = "anomalib's CS-Flow"
FLOWS = {"CS-Flow": csflow.PRESETS, "ValidFlow": validflow.PRESETS, THEIRS: csflow.PRESETS}
CHANNELS, STRIDE = 304, 32  # of the papers' layer of EfficientNet-B5


class Figure(NamedTuple):
    """One measured figure and what it should be."""

    name: str
    value: float
    unit: str
    goal: str = ""


class Skipped(Exception):
    """Why a part cannot be measured here."""


def require_anomalib() -> None:
    """Raise Skipped where it is not installed."""
    if importlib.util.find_spec("anomalib") is None:
        raise Skipped("anomalib is not installed")


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


def perlin(work: Path, options: argparse.Namespace) -> list[Figure]:
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


def anomalib_perlin(work: Path, options: argparse.Namespace) -> list[Figure]:
    """The same against anomalib's field, and its field rotated and thresholded as it does it."""
    require_anomalib()
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


def blended_samples(work: Path, options: argparse.Namespace) -> list[Figure]:
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


def sampler_overhead(work: Path, options: argparse.Namespace) -> list[Figure]:
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


def metrics(work: Path, options: argparse.Namespace) -> list[Figure]:
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


# Networks


class Job(NamedTuple):
    """One network in one arithmetic, or one training."""

    network: str
    preset: str
    part: str
    batch_size: int
    size_px: int
    repeats: int
    threads: int

    @property
    def name(self) -> str:
        """What is measured, in words."""
        return f"{self.network} {self.preset}, {self.part}, batches of {self.batch_size}"


def detectors(work: Path, options: argparse.Namespace) -> Iterator[Figure]:
    """Score with RealNet's presets and train them."""
    for preset in filter(REALNETS.__contains__, options.presets):
        yield from measured(jobs("RealNet", preset, REALNET_PARTS, options))


def flows(work: Path, options: argparse.Namespace) -> Iterator[Figure]:
    """Map features with the presets' flows and train them, anomalib's with the same shapes."""
    for network, presets in FLOWS.items():
        if network == THEIRS:
            require_anomalib()
        parts = ("training fp32", "plain") if network == THEIRS else FLOW_PARTS
        for preset in filter(presets.__contains__, options.presets):
            with torch.device("meta"):
                parameters = build_flow(network, preset, options.size_px).parameters()
            count = sum(parameter.numel() for parameter in parameters)
            yield Figure(f"{network} {preset}, parameters", count / 1e6, "M")
            yield from measured(jobs(network, preset, parts, options))


def diffusion(work: Path, options: argparse.Namespace) -> Iterator[Figure]:
    """Train the presets' diffusion models and draw images of 20 reverse steps with them."""
    for preset in filter(PRESETS.__contains__, options.presets):
        for kind in sorted({"epsilon", PRESETS[preset].unet.prediction}):
            yield from measured(jobs(f"{DDPM} {kind}", preset, DIFFUSION_PARTS, options))


def jobs(
    network: str, preset: str, parts: Sequence[str], options: argparse.Namespace
) -> Iterator[Job]:
    """What to measure, in order."""
    common = (options.size_px, options.repeats, torch.get_num_threads())
    for part in parts:
        learns = part.startswith("training")
        for batch_size in [options.training_batch] if learns else options.batch_sizes:
            yield Job(network, preset, part, batch_size, *common)


def measured(jobs: Iterable[Job]) -> Iterator[Figure]:
    """Do each job in a process of its own."""
    for job in jobs:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                yield from pool.submit(measure, job).result()
            except Exception as error:  # of memory, mostly: the others are still worth having
                reason = (str(error) or type(error).__name__).splitlines()[0]
                print(f"{job.name}: failed, {reason}", flush=True)


def measure(job: Job) -> list[Figure]:
    """Do one job in this process, which does nothing else."""
    torch.set_num_threads(job.threads)
    if job.part != "plain":
        steady_malloc()  # as commands do
    score, train = (mapping, flow_training) if job.network in FLOWS else (scoring, training)
    if job.network.startswith(DDPM):
        score, train = sampling, diffusion_training
    learns = job.part.startswith("training")
    value = (train if learns else score)(job)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    unit = "samples/s" if learns else "ms/image"
    return [Figure(job.name, value, unit), Figure("  peak memory", peak_mib, "MiB")]


def build(preset: str, size_px: int) -> RealNet:
    """A preset with random weights whose reconstruction is not zero."""
    config = REALNETS[preset]
    backbone_config = replace(config.backbone, weights="random")
    config = replace(config, backbone=backbone_config, image_size=(size_px, size_px))
    backbone = build_backbone(backbone_config)
    config = config.fitted(backbone.channels)
    indices = [torch.arange(kept) for kept in config.num_selected]  # as many as AFS would keep
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


def scoring(job: Job) -> float:
    """Milliseconds per image."""
    model = build(job.preset, job.size_px).eval()
    images = smooth_images(job.batch_size, job.size_px)
    if job.part == "onnxruntime":
        work = onnx_work(model, images)
    else:
        detector = model if job.part == "plain" else packed(model, job.part)  # pyright: ignore
        work = lambda: detector.predict(images)  # noqa: E731
    seconds = median_seconds(work, job.repeats)
    return 1000 * seconds / job.batch_size


def onnx_work(model: RealNet, images: torch.Tensor) -> Callable[[], object]:
    """Scoring of the exported network, its preprocessing included."""
    pixels = (images * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "detector.onnx"
        write_onnx(record(model, model.config.image_size), path, {})
        run = read_onnx(path)
    return lambda: run(pixels)


def training(job: Job) -> float:
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
    return job.batch_size / seconds


def build_flow(network: str, preset: str, size_px: int) -> nn.Module:
    """A preset's flow for features of EfficientNet-B5, with random weights."""
    config = FLOWS[network][preset]
    if network != THEIRS:
        return config.flow(CHANNELS)
    from anomalib.models.image.csflow.torch_model import CrossScaleFlow

    return CrossScaleFlow((3, size_px, size_px), len(config.kernels), ALPHA, config.hidden)


def random_features(job: Job) -> list[torch.Tensor]:
    """Seeded features of three scales, float32 [N, C, h, w]."""
    rng, sides = torch.Generator().manual_seed(0), [job.size_px // STRIDE // 2**i for i in range(3)]
    return [torch.randn(job.batch_size, CHANNELS, h, h, generator=rng) for h in sides]


@torch.no_grad()
def mapping(job: Job) -> float:
    """Milliseconds per image from features to latents."""
    flow, maps = build_flow(job.network, job.preset, job.size_px).eval(), random_features(job)
    if job.part != "plain":
        flow = packed(flow, job.part)  # pyright: ignore
    return 1000 * median_seconds(lambda: flow(maps), job.repeats) / job.batch_size


def flow_training(job: Job) -> float:
    """Samples per second of whole steps: forward, loss, backward, Adam."""
    flow, maps = build_flow(job.network, job.preset, job.size_px).train(), random_features(job)
    optimizer = ADAM(flow.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=job.part.endswith("bf16")):
            loss = negative_log_likelihood(Mapped(*flow(maps))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with keeping_freed_memory():  # as in `run_steps`
        return job.batch_size / median_seconds(step, job.repeats)


def diffusion_model(job: Job) -> tuple[TrainConfig, np.ndarray]:
    """A preset with the statistics of smooth images, uint8 [N, H, W, 3], and these."""
    config = PRESETS[job.preset]
    height, width = config.unet.image_size
    pixels = smooth_images(4, height)[..., :width] * 255
    images = pixels.byte().permute(0, 2, 3, 1).numpy()
    unet = replace(config.unet, prediction=job.network.removeprefix(DDPM).strip())
    if unet.prediction == "wiener":
        unet = replace(unet, spectrum=measure_spectrum([images], 3))
    precision = "bf16" if job.part.endswith("bf16") else "fp32"
    return replace(config, unet=unet, batch_size=job.batch_size, precision=precision), images


def diffusion_training(job: Job) -> float:
    """Samples per second of whole steps: batch, forward, losses, backward, Adam, averaging."""
    config, images = diffusion_model(job)
    precision = "bf16" if config.precision == "bf16" else "no"
    learner = Learner(Accelerator(cpu=True, mixed_precision=precision), config, [images])
    with keeping_freed_memory():  # as in `run_steps`
        return job.batch_size / learner.seconds_per_step()


def sampling(job: Job) -> float:
    """Milliseconds per image."""
    config, _ = diffusion_model(job)
    unet = build_unet(config.unet).to(memory_format=torch.channels_last).eval()  # pyright: ignore
    model = DiffusionModel(unet, {"train": config.to_json(), "category": "smooth"}, "")
    numbers = range(job.batch_size)
    work = lambda: sample_images(model, [0.1] * job.batch_size, 0, numbers, 20)  # noqa: E731
    return 1000 * median_seconds(work, job.repeats) / job.batch_size


# The run


PARTS: dict[str, Callable[[Path, argparse.Namespace], Iterable[Figure]]] = {
    "perlin": perlin,
    "anomalib": anomalib_perlin,
    "blending": blended_samples,
    "sampler": sampler_overhead,
    "metrics": metrics,
    "detectors": detectors,
    "flows": flows,
    "diffusion": diffusion,
}
"""Each part gets an empty folder to work in."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark.json"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    presets = {**REALNETS, **csflow.PRESETS, **PRESETS}
    parser.add_argument(
        "--presets", nargs="+", choices=presets, default=["paper", "paper-6", "compact", "tiny"]
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--training-batch", type=int, default=16)
    parser.add_argument("--size-px", type=int, default=SIZE[0])
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    """Measure everything, print a table, write JSON."""
    options = arguments()
    figures: list[Figure] = []
    for name in options.only:
        try:
            with tempfile.TemporaryDirectory() as work:
                for figure in PARTS[name](Path(work), options):
                    line = f"{figure.name:58} {figure.value:10.2f} {figure.unit:10} {figure.goal}"
                    print(line, flush=True)
                    figures.append(figure)
        except Skipped as reason:
            print(f"{name}: skipped, {reason}", flush=True)
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

"""All categories of a dataset, one command after another; scripts/make_sia.sh calls it."""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import torch

from synth.base.command import progress_bar, quiet_libraries
from synth.base.device import default_device
from synth.base.errors import UserError
from synth.base.files import read_json, write_json
from synth.data.catalog import Category, categories, open_category
from synth.data.normals import spread
from synth.diffusion.config import PRESETS, TrainConfig
from synth.diffusion.ddpm import build_unet
from synth.images import read_image, resize
from synth.publishing.licence import choose_licence, load_source_card
from synth.publishing.publication import (
    choose_for,
    find_folders,
    make_subsets,
    require_sound,
    write_folder_cards,
)
from synth.publishing.tables import figures_section

NUM_REVERSE_STEPS = 20
NUM_SAMPLES, NUM_STRENGTHS = 100, 4
"""Of the inspection."""
ANOMALY_PNG_SHARE = 1.3
"""Bytes of an anomaly image as PNG over those of a normal one: noise compresses badly."""


class Stage(NamedTuple):
    """A command and the file that it leaves when it is done."""

    title: str
    command: list[str]
    product: Path
    on_all_devices: bool = False


class Costs(NamedTuple):
    """Measured on this device: seconds per image of a training step, and of one reverse step."""

    train_seconds: float
    reverse_seconds: float


class Estimate(NamedTuple):
    """What is still to be done for one category."""

    category: str
    num_images: int
    train_seconds: float
    generate_seconds: float
    disk_bytes: float


def stages(options: argparse.Namespace, category: str) -> list[Stage]:
    """The commands for one category, in order."""
    model = (options.models or options.out / "models") / category
    sia = options.out / "sia"
    folder = sia / options.dataset / category
    inspected = options.out / "inspect" / category
    data = ["--dataset", options.dataset, "--root", str(options.root), "--category", category]
    train = ["train", *data, *training_words(options), "--out", str(model)]
    generate = ["generate", "--model", str(model), "--num", str(options.num), "--out", str(sia)]
    inspect = ["inspect", *data, "--model", str(model), "--folder", str(folder)]
    training = [] if options.models else [Stage("train", train, model / "check.json", True)]
    return [
        *training,
        Stage("generate", generate, folder / "metadata.jsonl", True),
        Stage(
            "inspect",
            [*inspect, "--num", str(num_samples(options)), "--out", str(inspected)],
            inspected / "quality.json",
        ),
    ]


def num_samples(options: argparse.Namespace) -> int:
    """How many samples of each strength the inspection draws."""
    return min(NUM_SAMPLES, options.num)


def training_words(options: argparse.Namespace) -> list[str]:
    """What `synth train` is told besides the data."""
    words = ["--preset", options.preset]
    if options.size is not None:
        words += ["--size", *map(str, options.size)]
    for name in ("num_steps", "batch_size", "init_from"):
        if getattr(options, name) is not None:
            words += ["--" + name.replace("_", "-"), str(getattr(options, name))]
    return words


def train_config(options: argparse.Namespace) -> TrainConfig:
    """The preset with the options that change its cost."""
    config = PRESETS[options.preset]
    chosen = {name: getattr(options, name) for name in ("num_steps", "batch_size")}
    config = replace(config, **{name: value for name, value in chosen.items() if value is not None})
    return config if options.size is None else config.with_size(tuple(options.size))


# The estimate


def measure_costs(config: TrainConfig) -> Costs:
    """Time one forward and one forward-and-backward pass of the network on this device."""
    device = default_device()
    batch = 4 if device.type == "cuda" else 1
    unet = build_unet(config.unet).to(device, memory_format=torch.channels_last)
    shape = (batch, config.unet.num_channels, *config.unet.image_size)
    x = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
    t = torch.zeros(batch, dtype=torch.long, device=device)

    def seconds(backward: bool) -> float:
        times = []
        for _ in range(3 if device.type == "cuda" else 2):
            start = time.perf_counter()
            with torch.set_grad_enabled(backward), torch.autocast(device.type, torch.bfloat16):
                loss = unet(x, t).sample.float().square().mean()
            if backward:
                loss.backward()
            loss.item()
            times.append(time.perf_counter() - start)
        return min(times) / batch

    return Costs(train_seconds=seconds(True), reverse_seconds=seconds(False))


def estimate(
    options: argparse.Namespace, category: Category, config: TrainConfig, costs: Costs
) -> Estimate:
    """Time and disk for what is not done yet of one category."""
    steps = {stage.title: stage for stage in stages(options, category.name)}
    train_images = config.num_steps * config.batch_size
    if "train" not in steps or is_done(options.out, category.name, steps["train"]):
        train_images = 0
    folder = steps["generate"].product.parent
    missing = max(0, options.num - sum(1 for _ in folder.glob("images/*/*.png")))
    drawn = missing
    if not is_done(options.out, category.name, steps["inspect"]):
        drawn += NUM_STRENGTHS * num_samples(options)
    network = sum(p.numel() for p in meta_unet(config).parameters()) * 4  # bytes, fp32
    return Estimate(
        category.name,
        len(category.train),
        train_images * costs.train_seconds / options.gpus,
        drawn * NUM_REVERSE_STEPS * costs.reverse_seconds / options.gpus,
        # Weights, and the state to go on from: weights, their average, two moments.
        (5 * network if train_images else 0) + missing * png_bytes(category, config),
    )


def meta_unet(config: TrainConfig) -> torch.nn.Module:
    """The network without memory."""
    with torch.device("meta"):
        return build_unet(config.unet)


def png_bytes(category: Category, config: TrainConfig) -> float:
    """The likely size of one anomaly image on disk."""
    paths = [record.path for record in category.train]
    sizes = []
    for number in spread(len(paths))[:4]:
        image = resize(read_image(paths[number]), config.unet.image_size)
        sizes.append(len(cv2.imencode(".png", image)[1]))
    return ANOMALY_PNG_SHARE * sum(sizes) / len(sizes)


def show(estimates: Sequence[Estimate]) -> Estimate:
    """Print the table of estimates; their sum."""
    total = Estimate("all", *(sum(column) for column in list(zip(*estimates, strict=True))[1:]))
    print(f"{'category':16} {'normals':>8} {'training':>10} {'generating':>11} {'disk':>10}")
    for row in [*estimates, total]:
        times = f"{duration(row.train_seconds):>10} {duration(row.generate_seconds):>11}"
        print(f"{row.category:16} {row.num_images:8} {times} {row.disk_bytes / 2**30:6.2f} GiB")
    return total


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


# The work


def is_done(out: Path, category: str, stage: Stage) -> bool:
    """Whether this very command has run to its end and its product is there."""
    record = done_file(out, category, stage)
    return (
        record.exists()
        and stage.product.exists()
        and read_json(record).get("command") == stage.command
    )


def done_file(out: Path, category: str, stage: Stage) -> Path:
    """Where it is written down that a stage is done."""
    return out / "done" / f"{category}.{stage.title}.json"


def run(options: argparse.Namespace, category: str, stage: Stage) -> None:
    """Run a stage unless it is done. Ends the program with the stage's exit code when it fails."""
    if is_done(options.out, category, stage):
        return
    launcher = [sys.executable, "-m"]
    if stage.on_all_devices and options.gpus > 1:
        launcher += ["accelerate.commands.launch", "--multi_gpu"]
        launcher += ["--num_processes", str(options.gpus), "-m"]
    command = [*launcher, "synth", *stage.command]
    print(f"\n== {category}: synth {' '.join(stage.command)}", flush=True)
    start = time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)
    seconds = time.perf_counter() - start
    write_json(
        done_file(options.out, category, stage), {"command": stage.command, "seconds": seconds}
    )


def write_cards(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Write the dataset card of every category, with the figures of its inspection."""
    for name in names:
        folders = find_folders([options.out / "sia" / options.dataset / name])
        require_sound(folders, progress_bar)
        sources, licence = choose_for(folders, options.licence, has_rights=False)
        figures = figures_section(options.out / "inspect" / name, [name])
        write_folder_cards(make_subsets(folders), sources, licence, figures)


def summarise(options: argparse.Namespace, names: Sequence[str]) -> Path:
    """Write what became of every category, as a table."""
    lines = ["| category | check at strength 0 | training | generating |", "|---|---|---|---|"]
    for name in names:
        cells = []
        for stage in stages(options, name)[:-1]:
            record = done_file(options.out, name, stage)
            cells.append(duration(read_json(record)["seconds"]) if record.exists() else "")
        model = (options.models or options.out / "models") / name
        check = model / "check.json"
        verdict = json.loads(check.read_text())["verdict"] if check.exists() else "not checked"
        lines.append(f"| {name} | {verdict} | {' | '.join([''] * (2 - len(cells)) + cells)} |")
    summary = options.out / "summary.md"
    summary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return summary


def make(options: argparse.Namespace) -> None:
    """Estimate, then do the work. Raises UserError for bad data and for too little disk."""
    found = categories(options.dataset, options.root)
    unknown = [name for name in options.categories or () if name not in found]
    if unknown or not found:
        raise UserError(
            f"--categories: no {', '.join(unknown) or 'category'} in {options.root}; "
            f"there are: {', '.join(found) or 'none'}"
        )
    names = options.categories or found
    choose_licence([load_source_card(options.dataset)], options.licence, has_rights=False)
    config = train_config(options)
    costs = measure_costs(config)
    opened = [open_category(options.dataset, options.root, name) for name in names]
    total = show([estimate(options, category, config, costs) for category in opened])
    options.out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.out).free
    print(f"(one device: {default_device()}, {options.gpus} in use; {free / 2**30:.1f} GiB free)")
    if total.disk_bytes > free:
        raise UserError(
            f"{options.out}: about {total.disk_bytes / 2**30:.1f} GiB are needed, "
            f"{free / 2**30:.1f} GiB are free; free some, lower --num, or give another folder"
        )
    if options.dry_run:
        return
    for name in names:
        for stage in stages(options, name):
            run(options, name, stage)
    write_cards(options, names)
    folder = options.out / "sia" / options.dataset
    print(f"\nSIA dataset: {folder}\nsummary: {summarise(options, names)}")
    print(f"to publish it: synth publish {folder} --repo ORG/NAME --figures {options.out}/inspect")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make_sia")
    parser.add_argument("dataset", help="layout, as `synth train --dataset`")
    parser.add_argument("root", type=Path, help="folder of the data")
    parser.add_argument("out", type=Path, help="folder of models, images and cards")
    parser.add_argument("--categories", nargs="+", help="default: all of the dataset")
    parser.add_argument("--num", type=int, default=10_000, help="images per category")
    parser.add_argument("--preset", choices=list(PRESETS), default="base")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--num-steps", type=int, help="training steps")
    parser.add_argument("--batch-size", type=int, help="training images per step")
    parser.add_argument("--init-from", help="as `synth train --init-from`")
    parser.add_argument("--models", type=Path, help="trained models, one folder per category")
    parser.add_argument("--licence", help="of the images, where the data's own is not known")
    parser.add_argument("--gpus", type=int, default=max(1, torch.cuda.device_count()))
    parser.add_argument("--dry-run", action="store_true", help="only the estimate")
    return parser.parse_args()


def main() -> None:
    """Run; a user's mistake is one line and exit code 2."""
    quiet_libraries()
    try:
        make(parse())
    except UserError as error:
        print(f"make_sia: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

"""The `synth` command: train, generate, blend, inspect."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from synth.catalog import held_out
from synth.command import DataOptions, progress_bar, run_command, say
from synth.config import PRESETS, Precision, SdasConfig, TrainConfig
from synth.device import fastest_precision, make_accelerator
from synth.files import claim_folder, read_json, write_json
from synth.generate import blend_sia, fit_rule, generate_sia
from synth.images import write_png
from synth.model import CONFIG_FILE, load_model, sample_images, save_model
from synth.pictures import SheetRow, all_grey, contact_sheet, digest, load_images
from synth.quality import check_samples
from synth.sia import open_sia
from synth.training import train_ddpm

NUM_CHECK_SAMPLES = 32
SHEET_STRENGTHS = (0.0, 0.1, 0.2, 0.5)


def train(
    data: DataOptions,
    *,
    out: Path,
    preset: Literal["tiny", "small"] = "tiny",
    size: tuple[int, int] | None = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    flip_horizontal: bool = False,
    flip_vertical: bool = False,
    precision: Precision = "auto",
    seed: int = 0,
) -> None:
    """Train a diffusion model on one category's normal images; the same command continues after an interruption.

    A tenth of the training images is held out and judges the samples at strength 0 at the end: under-fit, fit, or copies.

    Args:
        data: Which images.
        out: Folder of the model: a diffusers pipeline, the loss trace, a sample sheet, the check.
        preset: tiny (64 px, minutes on a CPU) or small (128 px, an hour on a CPU).
        size: Height and width in pixels, default the preset's. Images are squeezed to it.
        num_steps: Optimiser steps, default the preset's. A finished model trains on when this is raised.
        batch_size: Images per step over all processes, default the preset's.
        learning_rate: Of Adam, default the preset's.
        flip_horizontal: Mirror training images left to right half of the time.
        flip_vertical: Mirror training images top to bottom half of the time.
        precision: fp32 or bf16; auto takes the faster on this device.
        seed: Of weights, batches and noise.

    """
    category = data.open_checked()
    config = PRESETS[preset]
    chosen = {"num_steps": num_steps, "batch_size": batch_size, "learning_rate": learning_rate}
    config = replace(config, **{name: value for name, value in chosen.items() if value is not None})
    config = replace(
        config, seed=seed, flip_horizontal=flip_horizontal, flip_vertical=flip_vertical
    )
    if size is not None:
        config = config.with_size(size)
    fit, held = held_out(category)
    with progress_bar("loading images", "image") as update:
        images = load_images([record.path for record in fit + held], config.unet.image_size, update)
    config = replace(config, precision=resolve_precision(precision, out))
    config = replace(config, unet=replace(config.unet, num_channels=1 if all_grey(images) else 3))
    claim_folder(out, describe(category.dataset, category.name, config, images))

    accelerator = make_accelerator(config.precision)
    with progress_bar("training", "step") as update:
        unet = train_ddpm(accelerator, config, images[: len(fit)], out, update)
    if not accelerator.is_main_process:
        return
    save_model(out, unet)
    finish(out, images[: len(fit)], images[len(fit) :])


def resolve_precision(precision: Precision, out: Path) -> Precision:
    """The arithmetic to use; a run that is continued keeps its own when this is left to measurement."""
    if precision != "auto":
        return precision
    if (out / CONFIG_FILE).exists():
        return read_json(out / CONFIG_FILE).get("train", {}).get("precision", "fp32")
    return fastest_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def describe(
    dataset: str, category: str, config: TrainConfig, images: np.ndarray
) -> dict[str, object]:
    """What the weights depend on; the number of steps is left out, since it may be raised."""
    train = {key: value for key, value in config.to_json().items() if key != "num_steps"}
    data = {"num_images": len(images), "digest": digest(images)}
    return {"dataset": dataset, "category": category, "data": data, "train": train}


def finish(out: Path, fit: np.ndarray, held: np.ndarray) -> None:
    """Draw samples at s = 0, judge them, and write check.json and samples.png."""
    model = load_model(out, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    batches = []
    with progress_bar("sampling at strength 0", "image") as update:
        for start in range(0, NUM_CHECK_SAMPLES, 8):
            batches.append(sample_images(model, [0.0] * 8, 0, range(start, start + 8), 20))
            update(start + 8, NUM_CHECK_SAMPLES)
    samples = np.concatenate(batches)
    check = check_samples(samples, held, fit)
    write_json(out / "check.json", check.to_json())
    rows = [
        SheetRow("normal images", list(held[:8])),
        SheetRow("samples, strength 0", list(samples[:8])),
    ]
    for strength in SHEET_STRENGTHS[1:]:
        drawn = sample_images(model, [strength] * 8, 0, range(8), 20)
        rows.append(SheetRow(f"same noise, strength {strength}", list(drawn)))
    write_png(out / "samples.png", contact_sheet(rows))
    say(f"{check.sentence}\nmodel: {out}\nsamples to look at: {out / 'samples.png'}")


def generate(
    *,
    model: Path,
    out: Path,
    num: int = 200,
    strength: tuple[float, float] = (0.1, 0.2),
    num_steps: int = 20,
    batch_size: int = 16,
    seed: int = 0,
) -> None:
    """Draw SDAS anomaly images into an SIA folder; what is already there stays, a larger --num goes on.

    Args:
        model: Folder that `synth train` made.
        out: The images go to OUT/<dataset>/<category>.
        num: How many images there shall be.
        strength: Range of s, drawn per image. 0 0 gives the plain DDPM.
        num_steps: Reverse steps of the chain.
        batch_size: Images drawn at once; changes speed and memory, not the images.
        seed: Of every image, together with its index.

    """
    config = SdasConfig(strength=strength, num_steps=num_steps, seed=seed)
    accelerator = make_accelerator("fp32")
    diffusion = load_model(model, accelerator.device)
    with progress_bar("generating", "image") as update:
        folder = generate_sia(
            diffusion,
            config,
            out,
            num,
            batch_size=batch_size,
            process=accelerator.process_index,
            num_processes=accelerator.num_processes,
            on_image=update,
        )
    say(f"SIA folder: {folder}")


def blend(
    data: DataOptions,
    *,
    sia: Path,
    out: Path,
    num: int = 200,
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
) -> None:
    """Paste SDAS images into normal ones through Perlin masks on the product; images and masks to disk.

    `detect train` does the same on the fly; this is for looking, and for detectors of other toolkits.

    Args:
        data: Which normal images.
        sia: SIA folder of anomaly images.
        out: The images go to OUT/<dataset>/<category>.
        num: How many images there shall be.
        size: Height and width in pixels.
        seed: Of every image, together with its index.

    """
    category = data.open_checked()
    sources = open_sia(sia, kind="source")
    fit, _ = held_out(category)
    images = load_images([record.path for record in fit], size)
    rule = fit_rule(category, size)
    with progress_bar("blending", "image") as update:
        folder = blend_sia(fit, images, sources, rule, out, num, seed=seed, on_image=update)
    say(f"foreground rule: {rule.method}\nblended images and masks: {folder}")


def inspect(
    data: DataOptions,
    *,
    model: Annotated[Path | None, tyro.conf.arg(help="Folder that `synth train` made.")] = None,
    blended: Annotated[Path | None, tyro.conf.arg(help="Folder that `synth blend` made.")] = None,
    out: Path,
    num: int = 8,
    seed: int = 0,
) -> None:
    """Make one contact sheet: normal images, their foreground, samples at rising strength, blended images, masks.

    Args:
        data: Which normal images.
        model: Folder that `synth train` made.
        blended: Folder that `synth blend` made.
        out: The PNG file to write.
        num: Images in a row.
        seed: Of the samples; the same noise is used at every strength.

    """
    category = data.open()
    size = (256, 256)
    normals = load_images([record.path for record in category.train[:num]], size)
    rule = fit_rule(category, size)
    rows = [SheetRow(f"normal images of {category.name}", list(normals))]
    if rule.method != "everything":
        rows.append(
            SheetRow(f"foreground ({rule.method})", [rule.apply(image) for image in normals])
        )
    if model is not None:
        diffusion = load_model(model, make_accelerator("fp32").device)
        for strength in SHEET_STRENGTHS:
            drawn = sample_images(diffusion, [strength] * num, seed, range(num), 20)
            name = "0 (plain DDPM)" if strength == 0 else str(strength)
            rows.append(SheetRow(f"SDAS, strength s = {name}", list(drawn)))
    if blended is not None:
        folder = open_sia(blended, kind="blended")
        numbers = range(min(num, len(folder.rows)))
        rows.append(SheetRow("blended images", [folder.read_image(n) for n in numbers]))
        rows.append(SheetRow("their masks", [folder.read_mask(n) for n in numbers]))
    write_png(out, contact_sheet(rows))
    say(f"contact sheet: {out}")


def main() -> None:
    """Run the `synth` command line."""
    commands = {"train": train, "generate": generate, "blend": blend, "inspect": inspect}
    description = "Make anomaly images from normal images: train, generate, blend, inspect."
    sys.exit(run_command("synth", description, commands))

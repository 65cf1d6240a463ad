"""The `synth` command: train, generate, blend, inspect."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from synth.command import (
    DataOptions,
    Folder,
    OptionalFolder,
    Size,
    progress_bar,
    require_not_negative,
    require_output,
    require_positive,
    require_size,
    run_command,
    say,
    warn,
)
from synth.config import Foreground, SdasConfig
from synth.errors import UserError
from synth.options import TrainOptions

PngFile = Annotated[Path, tyro.conf.arg(metavar="FILE.png")]


def train(data: DataOptions, training: TrainOptions, *, out: Folder) -> None:
    """Train a diffusion model on one category's normal images.

    The same command goes on after an interruption. A tenth of the images is held out and judges
    the samples at strength 0 at the end: under-fit, fit, or copies.

    Args:
        data: Which images.
        training: How to train.
        out: The model: a diffusers pipeline, the loss trace, a sample sheet, the check.

    """
    config = training.config()
    category = data.open()
    require_output(out)
    from synth.diffusion_run import SHEET_FILE, train_model

    check = train_model(category, config, out, progress_bar)
    if check is not None:
        say(check.sentence)
        say(f"samples to look at: {out / SHEET_FILE}\nmodel: {out}")


def generate(
    *,
    model: Folder,
    out: Folder,
    num: int = 200,
    strength: Annotated[tuple[float, float], tyro.conf.arg(metavar="LOW HIGH")] = (0.1, 0.2),
    num_steps: int = 20,
    batch_size: int = 16,
    seed: int = 0,
) -> None:
    """Draw SDAS anomaly images into an SIA folder.

    What is already there stays, and a larger --num goes on from it.

    Args:
        model: What `synth train` made.
        out: The images go to OUT/<dataset>/<category>.
        num: How many images there shall be.
        strength: Range of s, drawn per image; 0 0 is the plain DDPM.
        num_steps: Reverse steps of the chain, a divisor of 1000.
        batch_size: Images drawn at once; changes speed and memory only.
        seed: Of every image, together with its index.

    """
    config = SdasConfig(strength=strength, num_steps=num_steps, seed=seed)
    require_positive(num=num, batch_size=batch_size)
    require_output(out)
    from synth.device import make_accelerator
    from synth.generate import generate_sia
    from synth.model import load_model

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
    sia: Folder,
    out: Folder,
    num: int = 200,
    size: Size = (256, 256),
    foreground: Foreground = "auto",
    seed: int = 0,
) -> None:
    """Paste SDAS images into normal ones under Perlin masks; images and masks to disk.

    `detect train` does the same on the fly; this is for looking, and for other toolkits.

    Args:
        data: Which normal images.
        sia: What `synth generate` made.
        out: The images go to OUT/<dataset>/<category>.
        num: How many images there shall be.
        size: Pixels.
        foreground: Where anomalies may lie: auto finds the product, everything is the whole image.
        seed: Of every image, together with its index.

    """
    require_positive(num=num)
    require_not_negative(seed=seed)
    require_size(size)
    category = data.open()
    require_output(out)
    from synth.generate import blend_sia
    from synth.normals import load_normals
    from synth.sia import open_sia

    sources = open_sia(sia, kind="source")
    if sources.category != category.name:
        warn(f"{sia} is of category {sources.category}, the normal images of {category.name}")
    normals = load_normals(category, size, progress_bar)
    rule = normals.foreground_rule(foreground)
    with progress_bar("blending", "image") as update:
        folder = blend_sia(normals, rule, sources, out, num, seed=seed, on_image=update)
    say(f"foreground rule: {rule.method}\nblended images and masks: {folder}")


def inspect(
    data: DataOptions,
    *,
    model: OptionalFolder = None,
    blended: OptionalFolder = None,
    out: PngFile,
    num: int = 8,
    seed: int = 0,
) -> None:
    """Make one contact sheet to look at.

    Normal images and their foreground, samples at rising strength, blended images and masks.

    Args:
        data: Which normal images.
        model: What `synth train` made: adds rows of samples.
        blended: What `synth blend` made: adds blended images and their masks.
        out: The sheet.
        num: Images in a row.
        seed: Of the samples; the same noise is used at every strength.

    """
    require_positive(num=num)
    require_not_negative(seed=seed)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UserError(f"--out: got {out}, must be a file that ends in .png")
    category = data.open()
    require_output(out.parent)
    from synth.images import write_png
    from synth.pictures import contact_sheet
    from synth.sheets import blended_rows, normal_rows, strength_rows
    from synth.sia import open_sia

    folder = None if blended is None else open_sia(blended, kind="blended")
    rows = normal_rows(category, num, (256, 256), progress_bar)
    if model is not None:
        from synth.device import make_accelerator
        from synth.model import load_model

        diffusion = load_model(model, make_accelerator("fp32").device)
        rows += strength_rows(diffusion, num, seed, progress_bar)
    if folder is not None:
        rows += blended_rows(folder, num)
    write_png(out, contact_sheet(rows))
    say(f"contact sheet: {out}")


def main() -> None:
    """Run the `synth` command line."""
    commands = {"train": train, "generate": generate, "blend": blend, "inspect": inspect}
    description = "Make anomaly images from normal images."
    sys.exit(run_command("synth", description, commands))

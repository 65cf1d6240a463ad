"""A training run of a diffusion model: claimed folder, training, and a check of its samples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from synth.catalog import Category
from synth.config import Precision, TrainConfig
from synth.device import make_accelerator
from synth.files import claim_folder, read_json, write_json
from synth.images import write_png
from synth.model import CONFIG_FILE, DiffusionModel, load_model, save_model
from synth.normals import Normals, load_normals
from synth.pictures import SheetRow, all_grey, contact_sheet
from synth.progress import Bars
from synth.quality import SampleCheck, check_samples
from synth.reference import make_reference, save_reference
from synth.resume import STATE_FILE
from synth.sheets import STRENGTHS, draw_samples, strength_rows
from synth.trace import require_no_fewer_steps
from synth.training import train_ddpm

NUM_CHECK_SAMPLES = 32
NUM_SHEET_IMAGES = 8
CHECK_FILE, SHEET_FILE = "check.json", "samples.png"


def train_model(
    category: Category, config: TrainConfig, out: Path, bars: Bars
) -> SampleCheck | None:
    """Train on a category's normal images into the folder `out`, or go on where that stopped.

    Returns the check of the samples, None on all processes but the first. Raises UserError for
    unreadable images and for a folder that was made with another configuration.
    """
    normals = load_normals(category, config.unet.image_size, bars)
    accelerator = make_accelerator(saved_precision(out, config.precision))
    config = replace(
        config,
        precision="bf16" if accelerator.mixed_precision == "bf16" else "fp32",
        unet=replace(config.unet, num_channels=1 if all_grey(normals.fit) else 3),
    )
    claim_folder(out, description(normals, config), work=out / STATE_FILE)
    require_no_fewer_steps(out, config.num_steps)
    with bars("training", "step", continues=True) as update:
        unet = train_ddpm(accelerator, config, normals.fit, out, update)
    if not accelerator.is_main_process:
        return None
    save_model(out, unet)
    return judge_samples(load_model(out, accelerator.device), normals, out, bars)


def saved_precision(out: Path, asked: Precision) -> Precision:
    """What to compute in: a run that goes on keeps its own arithmetic where "auto" is asked for."""
    if asked != "auto" or not (out / CONFIG_FILE).exists():
        return asked
    return read_json(out / CONFIG_FILE).get("train", {}).get("precision", "auto")


def description(normals: Normals, config: TrainConfig) -> dict[str, Any]:
    """What the weights depend on, but for the number of steps, which may be raised."""
    train = {key: value for key, value in config.to_json().items() if key != "num_steps"}
    dataset, category = normals.category.dataset, normals.category.name
    return {"dataset": dataset, "category": category, "data": normals.to_json(), "train": train}


def judge_samples(model: DiffusionModel, normals: Normals, out: Path, bars: Bars) -> SampleCheck:
    """Draw samples at s = 0, judge them by the held-out normals; write check.json, samples.png.

    The reference that they are judged by stays in the folder, for the scores of later images.
    """
    reference = make_reference(normals.fit, normals.held)
    save_reference(out, reference)
    samples = draw_samples(model, 0.0, NUM_CHECK_SAMPLES, 0, bars)
    check = check_samples(reference, samples, normals.held)
    write_json(out / CHECK_FILE, check.to_json())
    rows = [
        SheetRow("normal images, held out", list(normals.held[:NUM_SHEET_IMAGES])),
        SheetRow("samples, strength 0", list(samples[:NUM_SHEET_IMAGES])),
        *strength_rows(model, NUM_SHEET_IMAGES, 0, bars, STRENGTHS[1:]),
    ]
    write_png(out / SHEET_FILE, contact_sheet(rows))
    return check

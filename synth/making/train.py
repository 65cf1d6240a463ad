"""A training run of a diffusion model: claimed folder, training, and a check of its samples."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from synth.base.device import make_accelerator
from synth.base.errors import UserError
from synth.base.files import DAMAGE, read_json, write_json
from synth.base.progress import Bars
from synth.base.run_folder import agreed, num_steps_done, run_folder, saved_precision
from synth.base.tracking import require_tracker, tracked
from synth.data.catalog import Category
from synth.data.normals import Normals, load_normals
from synth.diffusion.config import RunConfig, TrainConfig
from synth.diffusion.init_from import Fit, Source, fit_source
from synth.diffusion.model import DiffusionModel, load_model, save_model
from synth.diffusion.prediction import STATISTICAL
from synth.diffusion.spectrum import measure_spectrum
from synth.diffusion.training import Learner, train_ddpm
from synth.images import write_png
from synth.making.looks import NUM_SHEET_IMAGES, Looks
from synth.pictures import Images, SheetRow, all_grey, contact_sheet
from synth.quality.check import SampleCheck, check_samples
from synth.quality.reference import make_reference, save_reference
from synth.quality.sheets import STRENGTHS, draw_samples, strength_rows

NUM_CHECK_SAMPLES = 32
CHECK_FILE, SHEET_FILE, SPEED_FILE = "check.json", "samples.png", "speed.json"


def train_model(
    categories: Sequence[Category],
    config: TrainConfig,
    out: Path,
    bars: Bars,
    *,
    run: RunConfig = RunConfig(),  # noqa: B008 (frozen)
    minutes: float | None = None,
    source: Source | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Mapping[str, SampleCheck] | None:
    """Train on the categories' normal images into the folder `out`, or go on where that stopped.

    Several categories make one conditional network. minutes: of training, in place of the
    configuration's number of steps (see `steps_within`). source: initial weights; `tell` gets a
    line on how many of them fit. Returns the check of each category's samples, None on all
    processes but the first. Raises UserError for unreadable images, for a folder that was made with
    another configuration, and for one that another command is training in.
    """
    require_tracker(run.tracker)
    normals = [load_normals(category, config.unet.image_size, bars) for category in categories]
    accelerator = make_accelerator(
        saved_precision(out, config.precision, ("train", "precision")), run.tracker, out
    )
    config = fitted(config, normals, accelerator, source, tell)
    fit = None if source is None else fit_source(source, config.unet)
    if fit is not None:
        tell(fit.summary)
    about = description(normals, config, fit)
    initial, images = None if fit is None else fit.weights, [one.fit for one in normals]
    with run_folder(
        accelerator,
        out,
        about,
        work=out,
        num_steps=config.num_steps if minutes is None else num_steps_done(out),
        upgraded=with_defaults,
    ):
        if minutes is not None:
            learner = partial(Learner, accelerator, config, images, run, initial)
            num_steps = steps_within(minutes, accelerator, learner, out, tell)
            config = replace(config, num_steps=num_steps)
        with (
            bars("training", "step", continues=True) as update,
            tracked(accelerator, update) as on_step,
        ):
            unet = train_ddpm(
                accelerator,
                config,
                images,
                out,
                on_step,
                run=run,
                initial=initial,
                look=Looks(about, out, run.keep_checkpoints),
            )
        if not accelerator.is_main_process:
            return None
        save_model(out, unet, config.unet.prediction)
        return judge_model(load_model(out, accelerator.device), normals, out, bars)


# What is decided before


def fitted(
    config: TrainConfig,
    normals: Sequence[Normals],
    accelerator: Accelerator,
    source: Source | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> TrainConfig:
    """The configuration for these images: channels, categories, pixel statistics, arithmetic."""
    images = [one.fit for one in normals]
    grey = all(map(all_grey, images))
    colour = not grey or (source is not None and source.unet.num_channels == 3)
    if grey and colour:
        tell("all images are grey, but the network keeps the 3 channels of its initial weights")
    num_channels, mu, sigma_data, spectrum = 3 if colour else 1, None, None, None
    if config.unet.prediction in STATISTICAL:
        mu, sigma_data = pixel_statistics(images)
    if config.unet.prediction == "wiener":
        mirrored = (config.flip_vertical, config.flip_horizontal)
        spectrum = measure_spectrum(images, num_channels, mirrored=mirrored, turned=config.rotate)
        mu = sigma_data = None  # in the spectrum
    return replace(
        config,
        precision="bf16" if accelerator.mixed_precision == "bf16" else "fp32",
        unet=replace(
            config.unet,
            num_channels=num_channels,
            num_categories=len(normals) if len(normals) > 1 else None,
            mu=mu,
            sigma_data=sigma_data,
            spectrum=spectrum,
        ),
    )


def steps_within(
    minutes: float,
    accelerator: Accelerator,
    learner: Callable[[], Learner],
    out: Path,
    tell: Callable[[str], None],
) -> int:
    """The number of steps that take `minutes`, by the speed of a learner that is then dropped.

    The speed is measured once and kept in SPEED_FILE: the same command goes on to the same number,
    more minutes to more. Raises UserError where not one step fits.
    """
    measured = learner().seconds_per_step() if not (out / SPEED_FILE).exists() else 0.0
    accelerator.free_memory()

    def decide() -> tuple[float, int]:
        if measured:
            write_json(out / SPEED_FILE, {"seconds_per_step": measured})
        cure = "delete it, and the speed is measured again"
        speed = read_json(out / SPEED_FILE, cure).get("seconds_per_step")
        if not isinstance(speed, float) or not 0 < speed < math.inf:
            raise UserError(f"{out / SPEED_FILE}: damaged; {cure}")
        return speed, int(60 * minutes / speed)

    speed, num_steps = agreed(accelerator, decide)
    if num_steps < 1:
        raise UserError(
            f"--minutes: got {minutes:g}, but one step takes {speed:.3g} s here; give at least "
            f"{math.ceil(100 * speed / 60) / 100:g}, or a smaller --preset, --size or --batch-size"
        )
    tell(f"{num_steps} steps of {speed:.3g} s: the same model as --num-steps {num_steps}")
    return num_steps


def pixel_statistics(images: Sequence[Images]) -> tuple[float, float]:
    """Mean and standard deviation of all pixels, in [-1, 1] units; categories count alike.

    images: uint8 [N, H, W, 3] of each category. Raises UserError where all pixels are equal.
    """
    shares = [np.bincount(part.reshape(-1), minlength=256) / part.size for part in images]
    share, x = np.mean(shares, axis=0), np.arange(256) / 127.5 - 1
    mu = float(share @ x)
    sigma_data = float(share @ (x - mu) ** 2) ** 0.5
    if share.max() == 1:
        raise UserError(
            "normal images: all pixels of all images have one value, so there is nothing to learn; "
            "check that they show the product"
        )
    return round(mu, 6), round(sigma_data, 6)


def with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
    """Read a folder's configuration of an earlier version: newer options have their defaults.

    What cannot be read stays as it is, so that `claim_folder` shows what differs.
    """
    try:
        train = TrainConfig.from_json(recorded["train"])
    except DAMAGE:
        return recorded
    return {**recorded, "train": weight_options(train)}


def weight_options(config: TrainConfig) -> dict[str, Any]:
    """What the weights depend on, but for the number of steps, which may be raised."""
    return {key: value for key, value in config.to_json().items() if key != "num_steps"}


def description(
    normals: Sequence[Normals], config: TrainConfig, fit: Fit | None = None
) -> dict[str, Any]:
    """The model's config.json: what its weights depend on."""
    names = [one.category.name for one in normals]
    data = {one.category.name: one.to_json() for one in normals}
    if len(names) > 1:
        about: dict[str, Any] = {"category": None, "categories": names, "data": data}
    else:
        about = {"category": names[0], "data": data[names[0]]}
    about = {"dataset": normals[0].category.dataset, **about, "train": weight_options(config)}
    return about if fit is None else {**about, "init": fit.to_json()}


# Checking


def judge_model(
    model: DiffusionModel, normals: Sequence[Normals], out: Path, bars: Bars
) -> dict[str, SampleCheck]:
    """Check every category's samples; check.json has the one check, or one for each category."""
    checks = {one.category.name: judge_samples(model, one, out, bars) for one in normals}
    plain = {name: check.to_json() for name, check in checks.items()}
    write_json(
        out / CHECK_FILE,
        {"categories": plain} if model.conditional else plain[normals[0].category.name],
    )
    return checks


def judge_samples(model: DiffusionModel, normals: Normals, out: Path, bars: Bars) -> SampleCheck:
    """Draw samples at s = 0 and judge them by the held-out normals; write their sheet.

    The reference that they are judged by stays in the folder, for the scores of later images.
    """
    category = normals.category.name if model.conditional else None
    reference = make_reference(normals.fit, normals.held)
    save_reference(out, reference, category)
    samples = draw_samples(model, 0.0, NUM_CHECK_SAMPLES, 0, bars, category)
    rows = [
        SheetRow("normal images, held out", list(normals.held[:NUM_SHEET_IMAGES])),
        SheetRow("samples, strength 0", list(samples[:NUM_SHEET_IMAGES])),
        *strength_rows(model, NUM_SHEET_IMAGES, 0, bars, STRENGTHS[1:], category),
    ]
    write_png(sheet_path(out, category), contact_sheet(rows))
    return check_samples(reference, samples, normals.held)


def sheet_path(out: Path, category: str | None) -> Path:
    """Where the sheet of samples lies; a conditional model has one for each category."""
    path = out / SHEET_FILE
    return path if category is None else path.with_stem(f"{path.stem}-{category}")

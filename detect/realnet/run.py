"""A training run of RealNet: channels, reconstruction and head, threshold, all in one folder."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from detect.calibration import Calibration, calibrate
from detect.checkpoint import save_detector
from detect.detector import Detector
from detect.options import TrainOptions
from detect.realnet.afs import AFSResult, best_channels
from detect.realnet.cache import FeatureCache
from detect.realnet.config import PRESETS, RealNetConfig
from detect.realnet.model import RealNet
from detect.realnet.selection import AFS_FILE, known_scores, selected_channels, whole_layers
from detect.scoring import detector_scorer, score_files
from detect.training.data import BlendedDataset
from detect.training.loop import train_detector
from detect.training.sources import DrawAnomaly, OpenSource
from detect.training.stopping import Checks, synthetic_test, without_judges
from synth.data.foreground import ForegroundRule
from synth.data.normals import Normals
from synth.device import make_accelerator
from synth.features import Backbone, build_backbone
from synth.pictures import all_grey
from synth.progress import Bars
from synth.run_folder import run_folder, saved_precision
from synth.seeding import derive_seed

AFS_SEED = 0
"""Of the samples that channels are chosen on: trainings of other seeds share the choice."""
AFS_KEY, TRAINING_KEY, JUDGES_KEY = 2, 3, 4
"""Keys of the samples' seeds: channels, weights and the moment to stop each have their own."""


def realnet_config(options: TrainOptions) -> RealNetConfig:
    """The preset with what was chosen besides. Raises UserError for values out of range."""
    options.check()
    preset = PRESETS[options.preset]
    if options.backbone_layers is not None:
        preset = preset.with_layers(options.backbone_layers)
    return replace(
        preset,
        image_size=options.size or preset.image_size,
        num_steps=options.num_steps or preset.num_steps,
        num_epochs=None if options.num_steps else preset.num_epochs,
        batch_size=options.batch_size or preset.batch_size,
        learning_rate=options.learning_rate or preset.learning_rate,
        seed=options.seed,
        official=options.official,
        backbone=replace(
            preset.backbone,
            name=options.backbone or preset.backbone.name,
            weights=options.backbone_weights or preset.backbone.weights,
            mean=options.backbone_mean or preset.backbone.mean,
            std=options.backbone_std or preset.backbone.std,
            seed=options.seed,
        ),
    )


class Prepared(NamedTuple):
    """What is decided before anything is computed.

    config: fitted to the backbone, its length in steps. facts: what a choice of channels depends
    on, but for the sources' files.
    """

    config: RealNetConfig
    rule: ForegroundRule
    backbone: Backbone
    facts: dict[str, Any]


def prepare(normals: Normals, source: OpenSource, options: TrainOptions) -> Prepared:
    """Fit the rule to the images and the configuration to the backbone and the images.

    Raises UserError for a backbone that cannot be had, and one that cannot take such images.
    """
    config = realnet_config(options)
    rule = normals.foreground_rule(options.foreground)
    backbone = build_backbone(config.backbone)
    backbone.require_image_size(config.image_size)
    facts = {
        "dataset": normals.category.dataset,
        "category": normals.category.name,
        "data": normals.to_json(),
        "source": source.config,
        "foreground": rule.to_dict(),
        "backbone_digest": backbone.digest,
    }
    config = config.fitted(backbone.channels).for_images(len(normals.fit))
    return Prepared(config, rule, backbone, facts)


def afs_samples(normals: Normals, draw: DrawAnomaly, prepared: Prepared) -> BlendedDataset:
    """The samples that channels are chosen on, all blended."""
    return BlendedDataset(
        normals.fit,
        prepared.rule,
        draw,
        seed=derive_seed(AFS_SEED, AFS_KEY),
        anomalous_share=1.0,
        official=prepared.config.official,
    )


class Choice(NamedTuple):
    """AFS's choice of channels and what it was made on; the backbone is on the device."""

    config: RealNetConfig
    afs: AFSResult
    blended: BlendedDataset
    backbone: Backbone
    device: torch.device


def choose_channels(
    normals: Normals, source: OpenSource, options: TrainOptions, bars: Bars
) -> Choice:
    """Choose channels as `train_realnet` does, and nothing more. Raises UserError as `prepare`."""
    prepared = prepare(normals, source, options)
    config, backbone = prepared.config, prepared.backbone
    accelerator = make_accelerator("fp32")
    backbone = backbone.to(accelerator.device)
    draw = source.load(normals.size, all_grey(normals.fit), bars)
    blended = afs_samples(normals, draw, prepared)
    about = {**prepared.facts, "files": source.digest()}
    scores = known_scores(accelerator, about, backbone, config, blended, bars)
    afs = best_channels(scores, config.num_selected)
    return Choice(config, afs, blended, backbone, accelerator.device)


def train_realnet(
    normals: Normals,
    source: OpenSource,
    options: TrainOptions,
    out: Path,
    bars: Bars,
    tell: Callable[[str], None] = lambda line: None,
) -> Calibration | None:
    """Train on a category's normal images into the folder `out`, or go on where that stopped.

    normals: at the size of `realnet_config(options)`. `tell` is told where AFS chooses nothing.

    Held-out images set the threshold and nothing else. Returns the calibration, None on all
    processes but the first. Raises UserError for unreadable images, an empty foreground, a folder
    that was made with another configuration, and one that another command is training in.
    """
    judges = None
    if options.patience is not None:
        normals, judges = without_judges(normals)
    prepared = prepare(normals, source, options)
    config, rule, backbone, facts = prepared
    accelerator = make_accelerator(saved_precision(out, options.precision, ("precision",)))
    about = description(facts, config, accelerator)
    if options.patience is not None:
        about["patience"] = options.patience
    work = out / "realnet"
    with run_folder(accelerator, out, about, work=work, num_steps=config.num_steps) as goes_on:
        if accelerator.is_main_process and not goes_on:
            (out / AFS_FILE).unlink(missing_ok=True)
        backbone = backbone.to(accelerator.device)
        draw = source.load(normals.size, all_grey(normals.fit), bars)
        unchosen = whole_layers(config, backbone.channels)
        if unchosen:
            tell(unchosen)
        blended = afs_samples(normals, draw, prepared)
        data = {**facts, "files": source.digest()}
        afs = selected_channels(accelerator, out, data, backbone, config, blended, bars)
        detector = RealNet(config, backbone, afs.indices)
        detector.cache = FeatureCache(len(normals.fit))
        dataset = BlendedDataset(
            normals.fit,
            rule,
            draw,
            seed=derive_seed(config.seed, TRAINING_KEY),
            official=config.official,
        )
        checks = None
        if judges is not None and options.patience is not None:
            test = synthetic_test(judges, rule, draw, derive_seed(config.seed, JUDGES_KEY))
            checks = Checks(out, test, options.patience)
        has_gpu = accelerator.device.type == "cuda"
        with bars("training", "step", continues=True) as update:
            train_detector(
                accelerator,
                detector,
                dataset,
                batch_size=config.batch_size,
                folder=out,
                num_workers=4 * has_gpu if options.workers is None else options.workers,
                on_step=update,
                checks=checks,
                average=not config.official,
            )
        if not accelerator.is_main_process:
            return None
        calibration = calibrated(
            detector, normals, options.false_reject_rate, accelerator.device, bars
        )
        num_steps = config.num_steps if checks is None else checks.best.step
        save_detector(out, detector, num_steps, calibration)
        return calibration


def description(
    facts: Mapping[str, Any], config: RealNetConfig, accelerator: Accelerator
) -> dict[str, Any]:
    """What the detector depends on, but for the number of steps, which may be raised."""
    detector = {key: value for key, value in config.to_json().items() if key != "num_steps"}
    return {
        "method": "realnet",
        **facts,
        "detector": detector,
        "precision": "bf16" if accelerator.mixed_precision == "bf16" else "fp32",
    }


def calibrated(
    detector: Detector, normals: Normals, rate: float, device: torch.device, bars: Bars
) -> Calibration:
    """The threshold from the held-out images, scored from their files as prediction does."""
    paths = [record.path for record in normals.held_records]
    with bars("calibrating", "image") as update:
        held = score_files(detector_scorer(detector, device), paths, normals.size, progress=update)
    return calibrate(held.scores.tolist(), rate)

"""A training run of RealNet: channels, reconstruction and head, threshold, all in one folder."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from detect.calibration import Calibration, calibrate
from detect.checkpoint import CALIBRATION_FILE, save_detector
from detect.detector import Detector
from detect.evaluation.testset import TestSet
from detect.evaluation.watch import WATCH_FILE, Watch
from detect.methods.realnet.afs import AFSResult, best_channels
from detect.methods.realnet.config import PRESETS, RealNetConfig
from detect.methods.realnet.model import RealNet
from detect.methods.realnet.selection import AFS_FILE, known_scores, selected_channels, whole_layers
from detect.options import TrainOptions
from detect.scoring import detector_scorer, file_scores
from detect.training.data import (
    ANOMALOUS_SHARE,
    BlendedDataset,
    JoinedDataset,
    find_foregrounds,
    to_chw,
    to_unit,
)
from detect.training.loop import require_equal_shares, train_detector
from detect.training.sources import CACHE_BYTES, DrawAnomaly, OpenSource
from detect.training.stopping import (
    BEST_FILE,
    CHECKS_FILE,
    Checks,
    blended_once,
    without_judges,
)
from synth.base.backbone_weights import default_weights
from synth.base.backbones import Backbone, build_backbone
from synth.base.device import make_accelerator
from synth.base.options import Tracker
from synth.base.progress import Bars
from synth.base.run_folder import run_folder, saved_precision
from synth.base.seeding import derive_seed
from synth.base.tracking import require_tracker, tracked
from synth.data.foreground import ForegroundRule
from synth.data.normals import Normals
from synth.pictures import Images, all_grey

Mask = NDArray[np.bool_]

AFS_SEED = 0
"""Of the samples that channels are chosen on: trainings of other seeds share the choice."""
SCALE_IMAGES = 16
"""That the size of features is measured on."""
AFS_KEY, TRAINING_KEY, JUDGES_KEY = 2, 3, 4
"""Keys of the samples' seeds: channels, weights and the moment to stop each have their own."""


def realnet_config(options: TrainOptions) -> RealNetConfig:
    """The preset with what was chosen besides. Raises UserError for values out of range."""
    options.check()
    preset = PRESETS[options.preset]
    layers = options.layers(len(preset.backbone.layers))
    if layers is not None:
        preset = preset.with_layers(layers)
    return replace(
        preset,
        image_size=options.size or preset.image_size,
        num_steps=options.num_steps or preset.num_steps,
        num_epochs=None if options.num_steps else preset.num_epochs,
        batch_size=options.batch_size or preset.batch_size,
        learning_rate=options.learning_rate or preset.learning_rate,
        seed=options.seed,
        scale_features=preset.scale_features and not options.official,
        official=options.official,
        backbone=replace(
            preset.backbone,
            name=options.backbone or preset.backbone.name,
            weights=options.backbone_weights
            or (default_weights(options.backbone) if options.backbone else preset.backbone.weights),
            mean=options.backbone_mean or preset.backbone.mean,
            std=options.backbone_std or preset.backbone.std,
            seed=options.seed,
        ),
    )


class Product(NamedTuple):
    """What is trained on of one category: its normal images and its own anomaly source."""

    normals: Normals
    source: OpenSource


class Prepared(NamedTuple):
    """What is decided before anything is computed.

    config: fitted to the backbone, its length in steps. rules, foregrounds: how the products are
    found, and where they are in the images to train on. facts: what a choice of channels depends
    on, but for the sources' files.
    """

    config: RealNetConfig
    rules: tuple[ForegroundRule, ...]
    foregrounds: Sequence[Sequence[Mask]]
    backbone: Backbone
    facts: dict[str, Any]


def prepare(products: Sequence[Product], options: TrainOptions) -> Prepared:
    """Fit the rules to the images and the configuration to the backbone and the images.

    Raises UserError for an empty foreground, a backbone that cannot be had (it may be downloaded
    here, so that whatever can be refused without it comes first), and one that cannot take such
    images.
    """
    config = realnet_config(options)
    rules = tuple(product.normals.foreground_rule(options.foreground) for product in products)
    foregrounds = [
        find_foregrounds(product.normals.fit, rule)
        for product, rule in zip(products, rules, strict=True)
    ]
    backbone = build_backbone(config.backbone)
    backbone.require_image_size(config.image_size)
    facts = {**product_facts(products, rules), "backbone_digest": backbone.digest}
    num_images = sum(len(product.normals.fit) for product in products)
    config = config.fitted(backbone.channels).for_images(num_images)
    if config.scale_features:
        config = config.scaled(feature_rms(backbone, products))
    return Prepared(config, rules, foregrounds, backbone, facts)


@torch.no_grad()
def feature_rms(backbone: Backbone, products: Sequence[Product]) -> list[float]:
    """Root mean square of each layer's features, on a few normal images of every product."""
    each = math.ceil(SCALE_IMAGES / len(products))
    chosen = [image for product in products for image in product.normals.fit[:each]]
    layers = backbone(to_unit(torch.stack([to_chw(image) for image in chosen])))
    return [x.square().mean().sqrt().item() for x in layers]


def product_facts(products: Sequence[Product], rules: Sequence[ForegroundRule]) -> dict[str, Any]:
    """What is trained on, to be recorded; of several categories each by its name."""
    rows = {
        product.normals.category.name: {
            "data": product.normals.to_json(),
            "source": product.source.config,
            "foreground": rule.to_dict(),
        }
        for product, rule in zip(products, rules, strict=True)
    }
    dataset = products[0].normals.category.dataset
    if len(rows) == 1:
        ((name, row),) = rows.items()
        return {"dataset": dataset, "category": name, **row}
    num_images = sum(row["data"]["num_images"] for row in rows.values())
    parts = {name: row["source"] for name, row in rows.items()}
    return {
        "dataset": dataset,
        "category": f"{len(rows)} categories",
        "categories": list(rows),
        "data": {"num_images": num_images, **{name: row["data"] for name, row in rows.items()}},
        "source": {"kind": next(iter(parts.values()))["kind"], "categories": parts},
        "foreground": {name: row["foreground"] for name, row in rows.items()},
    }


def load_sources(products: Sequence[Product], bars: Bars) -> list[DrawAnomaly]:
    """The products' sources in memory; their images share the bytes that are kept."""
    share = CACHE_BYTES // len(products)
    return [
        source.load(normals.size, all_grey(normals.fit), bars, share)
        for normals, source in products
    ]


def blended_samples(
    images: Sequence[Images],
    foregrounds: Sequence[Sequence[Mask] | None],
    draws: Sequence[DrawAnomaly],
    prepared: Prepared,
    seed: int,
    anomalous_share: float = ANOMALOUS_SHARE,
) -> BlendedDataset | JoinedDataset:
    """Samples over the products' images, each with its own foreground and its own anomalies.

    foregrounds: None is found by the product's rule.
    """
    parts = [
        BlendedDataset(
            normals,
            rule,
            draw,
            seed=seed,
            anomalous_share=anomalous_share,
            official=prepared.config.official,
            foregrounds=masks,
        )
        for normals, masks, rule, draw in zip(
            images, foregrounds, prepared.rules, draws, strict=True
        )
    ]
    return parts[0] if len(parts) == 1 else JoinedDataset(parts, seed=seed)


def afs_samples(
    products: Sequence[Product], draws: Sequence[DrawAnomaly], prepared: Prepared
) -> BlendedDataset | JoinedDataset:
    """The samples that channels are chosen on, all blended."""
    images = [product.normals.fit for product in products]
    seed = derive_seed(AFS_SEED, AFS_KEY)
    return blended_samples(images, prepared.foregrounds, draws, prepared, seed, 1.0)


class Choice(NamedTuple):
    """AFS's choice of channels and what it was made on; the backbone is on the device."""

    config: RealNetConfig
    afs: AFSResult
    blended: BlendedDataset | JoinedDataset
    backbone: Backbone
    device: torch.device


def choose_channels(
    normals: Normals, source: OpenSource, options: TrainOptions, bars: Bars
) -> Choice:
    """Choose channels as `train_realnet` does, and nothing more. Raises UserError as `prepare`."""
    products = [Product(normals, source)]
    prepared = prepare(products, options)
    config, backbone = prepared.config, prepared.backbone
    accelerator = make_accelerator("fp32")
    backbone = backbone.to(accelerator.device)
    blended = afs_samples(products, load_sources(products, bars), prepared)
    about = {**prepared.facts, "files": source.digest()}
    scores = known_scores(accelerator, about, backbone, config, blended, bars)
    afs = best_channels(scores, config.num_selected)
    return Choice(config, afs, blended, backbone, accelerator.device)


def train_realnet(
    products: Sequence[Product],
    options: TrainOptions,
    out: Path,
    bars: Bars,
    tell: Callable[[str], None] = lambda line: None,
    tests: Sequence[TestSet] = (),
    tracker: Tracker = "none",
) -> Calibration | None:
    """Train one detector on one category or several into the folder `out`, or go on with it.

    products: of one dataset, at the size of `realnet_config(options)`. Held-out images set the
    thresholds, one of all together and one of each category, and nothing else. `tell` is told where
    AFS chooses nothing, and what was best on `tests`, which are measured on every now and then and
    change nothing. tracker: where losses go besides the trace. Returns the calibration of all
    together, None on all processes but the first. Raises UserError for unreadable images, an empty
    foreground, a folder that was made with another configuration, and one that another command is
    training in.
    """
    judges: list[Images] = []
    if options.patience is not None:
        parted = [without_judges(product.normals) for product in products]
        judges = [images for _, images in parted]
        products = [
            product._replace(normals=normals)
            for product, (normals, _) in zip(products, parted, strict=True)
        ]
    require_tracker(tracker)
    precision = saved_precision(out, options.precision, ("precision",))
    accelerator = make_accelerator(precision, tracker, out)
    require_equal_shares(accelerator, realnet_config(options).batch_size)
    prepared = prepare(products, options)
    config, backbone, facts = prepared.config, prepared.backbone, prepared.facts
    about = description(facts, config, accelerator)
    if options.patience is not None:
        about["patience"] = options.patience
    work = out / "realnet"
    with run_folder(accelerator, out, about, work=work, num_steps=config.num_steps) as goes_on:
        if accelerator.is_main_process and not goes_on:
            for name in (AFS_FILE, CHECKS_FILE, BEST_FILE, WATCH_FILE, CALIBRATION_FILE):
                (out / name).unlink(missing_ok=True)  # of another configuration
        backbone = backbone.to(accelerator.device)
        draws = load_sources(products, bars)
        unchosen = whole_layers(config, backbone.channels)
        if unchosen:
            tell(unchosen)
        blended = afs_samples(products, draws, prepared)
        files = [product.source.digest() for product in products]
        data = {**facts, "files": files[0] if len(files) == 1 else files}
        afs = selected_channels(accelerator, out, data, backbone, config, blended, bars)
        detector = RealNet(config, backbone, afs.indices).to(accelerator.device)
        images = [product.normals.fit for product in products]
        seed = derive_seed(config.seed, TRAINING_KEY)
        dataset = blended_samples(images, prepared.foregrounds, draws, prepared, seed)
        with accelerator.autocast(), bars("features of the normal images", "image") as update:
            detector.remember([*chain.from_iterable(images)], update)
        checks = None
        if options.patience is not None:
            seed = derive_seed(config.seed, JUDGES_KEY)
            judged = blended_samples(judges, [None] * len(judges), draws, prepared, seed, 1.0)
            checks = Checks(out, blended_once(judged), options.patience)
        watch = Watch(out, tests, config.image_size, bars) if tests else None
        has_gpu = accelerator.device.type == "cuda"
        with (
            bars("training", "step", continues=True) as update,
            tracked(accelerator, update) as on_step,
        ):
            train_detector(
                accelerator,
                detector,
                dataset,
                batch_size=config.batch_size,
                folder=out,
                num_workers=4 * has_gpu if options.workers is None else options.workers,
                on_step=on_step,
                checks=checks,
                watch=watch,
                average=not config.official,
            )
        if not accelerator.is_main_process:
            return None
        rate = options.false_reject_rate
        own = {
            product.normals.category.name: calibrated(
                detector, product.normals, rate, accelerator.device, bars
            )
            for product in products
        }
        together = calibrate([score for each in own.values() for score in each.scores], rate)
        num_steps = config.num_steps if checks is None else checks.best.step
        save_detector(out, detector, num_steps, together, own if len(own) > 1 else None)
        if watch is not None:
            tell(watch.sentence(num_steps, config.num_steps))
        return together


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
        held = file_scores(detector_scorer(detector, device), paths, normals.size, update)
    return calibrate(held, rate)

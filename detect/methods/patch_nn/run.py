"""A run of the patch nearest neighbour baseline: its bank and its threshold, in one folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from detect.calibration import Calibration
from detect.checkpoint import save_detector
from detect.methods.patch_nn.bank import build_bank
from detect.methods.patch_nn.model import LAYERS, Choice, PatchNN, PatchNNConfig
from detect.methods.realnet.config import PRESETS
from detect.methods.realnet.run import calibrated
from detect.options import TrainOptions
from detect.training.sources import OpenSource
from synth.base.backbone_weights import default_weights
from synth.base.backbones import build_backbone
from synth.base.device import make_accelerator
from synth.base.progress import Bars
from synth.base.run_folder import run_folder
from synth.data.normals import Normals


def patch_nn_config(options: TrainOptions, choice: Choice) -> PatchNNConfig:
    """Size and backbone as of RealNet's preset, layers 2 and 3, or blocks of a ViT."""
    options.check()
    preset = PRESETS[options.preset]
    return PatchNNConfig(
        image_size=options.size or preset.image_size,
        choice=choice,
        seed=options.seed,
        backbone=replace(
            preset.backbone,
            name=options.backbone or preset.backbone.name,
            weights=options.backbone_weights
            or (default_weights(options.backbone) if options.backbone else preset.backbone.weights),
            layers=options.layers(len(LAYERS)) or LAYERS,
            mean=options.backbone_mean or preset.backbone.mean,
            std=options.backbone_std or preset.backbone.std,
            seed=options.seed,
        ),
    )


def train_patch_nn(
    normals: Normals,
    source: OpenSource,
    options: TrainOptions,
    out: Path,
    bars: Bars,
    *,
    choice: Choice = "random",
) -> Calibration | None:
    """Fill a bank from a category's normal images and calibrate, into the folder `out`.

    source: one without parts; anomalies have no use here. Held-out images set the threshold and
    nothing else. Returns the calibration, None on all processes but the first. Raises UserError as
    `train_realnet`.
    """
    config = patch_nn_config(options, choice)
    backbone = build_backbone(config.backbone)
    backbone.require_image_size(config.image_size)
    accelerator = make_accelerator("fp32" if options.precision == "auto" else options.precision)
    about: dict[str, Any] = {
        "method": "patch-nn",
        "dataset": normals.category.dataset,
        "category": normals.category.name,
        "data": normals.to_json(),
        "source": source.config,
        "backbone_digest": backbone.digest,
        "detector": config.to_json(),
        "precision": "fp32",
    }
    with run_folder(accelerator, out, about, work=out / "patch-nn", num_steps=0):
        if not accelerator.is_main_process:
            return None
        device = accelerator.device
        with bars("filling the bank", "image") as update:
            bank = build_bank(backbone.to(device), normals.fit, config, device, update)
        detector = PatchNN(config, backbone, bank).to(device).eval()
        calibration = calibrated(detector, normals, options.false_reject_rate, device, bars)
        save_detector(out, detector, 0, calibration)
        return calibration

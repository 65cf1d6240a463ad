"""A RealNet of a few thousand parameters on disk, for tests of what uses a detector."""

from pathlib import Path

import numpy as np
import torch
from products import normal_image

from detect.calibration import calibrate
from detect.checkpoint import save_detector
from detect.methods.realnet import RealNet, RealNetConfig
from detect.scoring import detector_scorer
from synth.base.backbones import BackboneConfig, build_backbone
from synth.base.files import write_json

CONFIG = RealNetConfig(
    image_size=(32, 32),
    backbone=BackboneConfig(name="resnet10t", layers=(1, 2), weights="random"),
    num_selected=(4, 4),
    num_max=3,
    num_mean=3,
    head_widths=(8, 8, 4, 4),
    multipliers=(1,),
    num_res_blocks=1,
    num_steps=1,
)
NUM_HELD_OUT = 39


def write_detector(folder: Path, rate: float = 0.1) -> Path:
    """Save an untrained RealNet as `detect train` saves a trained one; 39 normals calibrate it."""
    indices = [torch.tensor([1, 3, 5, 7]), torch.tensor([0, 2, 4, 6])]
    detector = RealNet(CONFIG, build_backbone(CONFIG.backbone), indices).eval()
    config = {key: value for key, value in CONFIG.to_json().items() if key != "num_steps"}
    about = {
        "method": "realnet",
        "dataset": "folder",
        "category": "widget",
        "data": {"num_images": 400},
        "source": {"kind": "noise"},
        "precision": "fp32",
        "detector": config,
    }
    write_json(folder / "config.json", about)
    normals = np.stack([normal_image(n) for n in range(NUM_HELD_OUT)])
    scores = detector_scorer(detector, torch.device("cpu"))(normals).scores
    save_detector(folder, detector, 1, calibrate(scores.tolist(), rate))
    return folder

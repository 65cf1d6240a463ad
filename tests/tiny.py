"""A diffusion model of a few thousand parameters on disk, for tests of what uses one."""

from pathlib import Path
from typing import Any

import torch

from synth.base.files import write_json
from synth.diffusion.config import TrainConfig, UNetConfig
from synth.diffusion.ddpm import build_unet
from synth.diffusion.model import CONFIG_FILE, save_model

UNET = UNetConfig(
    image_size=(16, 24),
    block_channels=(8, 16),
    attention_levels=(1,),
    head_channels=8,
    norm_groups=4,
)


def write_model(folder: Path, unet: UNetConfig = UNET, seed: int = 0, **about: Any) -> Path:
    """Save an untrained network (no parameter at zero) as `synth train` saves a trained one."""
    network = build_unet(unet)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=g))
    train = TrainConfig(unet=unet, precision="fp32").to_json()
    write_json(folder / CONFIG_FILE, {"dataset": "data", "category": "nut", "train": train} | about)
    save_model(folder, network, unet.prediction)
    return folder

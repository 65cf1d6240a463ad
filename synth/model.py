"""A trained diffusion model on disk: a diffusers pipeline folder beside our config.json."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file

from synth.config import Precision, UNetConfig
from synth.ddpm import build_scheduler, build_unet
from synth.errors import UserError
from synth.files import atomic_path, read_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "unet/diffusion_pytorch_model.safetensors"
STAGING = ".model.partial"


class DiffusionModel(NamedTuple):
    """A network for one category. `digest` is that of its weights."""

    unet: UNet2DModel
    config: dict[str, Any]
    digest: str

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of what it draws."""
        height, width = self.config["train"]["unet"]["image_size"]
        return height, width

    @property
    def num_channels(self) -> int:
        """1 for grey products, else 3."""
        return self.config["train"]["unet"]["num_channels"]

    @property
    def precision(self) -> Precision:
        """The arithmetic it was trained in."""
        return self.config["train"]["precision"]


def save_model(folder: Path, unet: UNet2DModel) -> None:
    """Write the network (averaged weights) and its scheduler as `DDPMPipeline` loads them.

    The weights appear last and whole. Raises UserError when the disk is full.
    """
    staging = folder / STAGING
    with atomic_path(folder / WEIGHTS_FILE) as weights:
        shutil.rmtree(staging, ignore_errors=True)
        try:
            DDPMPipeline(unet=unet, scheduler=build_scheduler()).save_pretrained(staging)
            os.replace(staging / WEIGHTS_FILE, weights)
            shutil.copytree(staging, folder, dirs_exist_ok=True)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def load_model(folder: Path, device: torch.device) -> DiffusionModel:
    """Load what `synth train` wrote, for sampling on `device`.

    Raises UserError when `folder` is no such model, is unfinished or damaged.
    """
    config = read_json(folder / CONFIG_FILE)
    try:
        _ = config["dataset"], config["category"], config["train"]["precision"]
        unet = build_unet(UNetConfig.from_json(config["train"]["unet"]))
    except (LookupError, TypeError, AttributeError):
        raise UserError(
            f"{folder}: not a diffusion model; give the --out of `synth train`"
        ) from None
    weights = folder / WEIGHTS_FILE
    if not weights.exists():
        raise UserError(
            f"{folder}: training is unfinished; run its `synth train` command again to complete it"
        )
    try:
        unet.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{weights}: damaged ({str(error).splitlines()[0]}); "
            "delete it and run its `synth train` command again"
        ) from error
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    unet.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    unet.eval().requires_grad_(False)
    return DiffusionModel(unet, config, digest)

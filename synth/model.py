"""A trained diffusion model on disk: a diffusers pipeline folder beside our config.json."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from synth.config import Precision
from synth.ddpm import build_scheduler, noise_schedule
from synth.errors import UserError
from synth.files import read_json
from synth.sdas import sample_sdas
from synth.seeding import generator

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "unet/diffusion_pytorch_model.safetensors"


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
    """Write the network (averaged weights) and its scheduler as `DDPMPipeline` loads them."""
    DDPMPipeline(unet=unet, scheduler=build_scheduler()).save_pretrained(folder)


def load_model(folder: Path, device: torch.device) -> DiffusionModel:
    """Load what `synth train` wrote, for sampling on `device`.

    Raises UserError when `folder` is no such model, is unfinished or damaged.
    """
    config = read_json(folder / CONFIG_FILE)
    if "unet" not in config.get("train", {}):
        raise UserError(f"{folder}: not a diffusion model; give the --out of `synth train`")
    weights = folder / WEIGHTS_FILE
    if not weights.exists():
        raise UserError(
            f"{folder}: training is unfinished; run its `synth train` command again to complete it"
        )
    try:
        unet = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{weights}: damaged ({str(error).splitlines()[0]}); "
            "delete it and run its `synth train` command again"
        ) from error
    assert isinstance(unet, UNet2DModel)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    module: nn.Module = unet.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    module.eval().requires_grad_(False)
    return DiffusionModel(unet, config, digest)


def sample_images(
    model: DiffusionModel,
    strengths: Sequence[float],
    seed: int,
    indices: Sequence[int],
    num_steps: int,
) -> NDArray[np.uint8]:
    """SDAS images with these indices, uint8 [N, H, W, 3] RGB.

    Image i depends on (model, num_steps, strength, seed, i) alone. Raises ValueError for a negative
    strength.
    """
    device = model.unet.device
    bf16 = model.precision == "bf16"

    def denoiser(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return model.unet(x_t.contiguous(memory_format=torch.channels_last), t).sample

    shape = (model.num_channels, *model.image_size)
    generators = [generator(seed, index, device=device) for index in indices]
    x = sample_sdas(denoiser, noise_schedule(num_steps).to(device), shape, strengths, generators)
    levels = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)  # [N, H, W, C]
    return levels.expand(-1, -1, -1, 3).cpu().numpy()

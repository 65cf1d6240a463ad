"""Images from a trained diffusion model."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synth.base.options import Precision
from synth.base.seeding import generator
from synth.diffusion.ddpm import noise_schedule
from synth.diffusion.model import DiffusionModel
from synth.diffusion.prediction import Denoised
from synth.diffusion.sdas import Start, sample_sdas


def sample_images(
    model: DiffusionModel,
    strengths: Sequence[float],
    seed: int,
    indices: Sequence[int],
    num_steps: int,
    category: str | None = None,
    *,
    start: Start | None = None,
    attempts: Sequence[int] | None = None,
    precision: Precision | None = None,
) -> NDArray[np.uint8]:
    """SDAS images with these indices, uint8 [N, H, W, 3] RGB.

    Image i depends on (model, category, num_steps, strength, seed, i), its start and its attempt
    alone; another attempt (0 if not given) is another candidate for the same image. `start` must be
    on the model's device. precision: the model's by default. A conditional model needs a category.
    Raises UserError for one that it does not know, ValueError for a negative strength.
    """
    device = model.unet.device
    bf16 = (precision or model.precision) == "bf16"
    label = model.label(category)
    labels = None if label is None else torch.full((len(indices),), label, device=device)

    prediction, all_alpha_bar = model.prediction, noise_schedule().alpha_bar.to(device)

    def denoiser(x_t: Tensor, t: Tensor) -> Denoised:
        alpha_bar = all_alpha_bar[t]
        x = prediction.input(x_t, alpha_bar).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output = model.unet(x, t, class_labels=labels).sample
        return prediction.read(output, x_t, alpha_bar)

    shape = (model.num_channels, *model.image_size)
    attempts = attempts or [0] * len(indices)
    generators = [
        generator(seed, index, *((0, attempt) if attempt else ()), device=device)
        for index, attempt in zip(indices, attempts, strict=True)
    ]
    schedule = noise_schedule(num_steps).to(device)
    x = sample_sdas(denoiser, schedule, shape, strengths, generators, start)
    levels = ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)  # [N, H, W, C]
    return levels.expand(-1, -1, -1, 3).cpu().numpy()

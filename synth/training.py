"""The DDPM training loop: batches, hybrid loss, averaged weights."""

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor

from synth.config import NUM_TRAIN_TIMESTEPS, TrainConfig
from synth.ddpm import (
    NoiseSchedule,
    add_noise,
    build_unet,
    hybrid_loss,
    noise_schedule,
    stride_loss,
    strided_schedule,
)
from synth.errors import UserError
from synth.features import seeded_init
from synth.resume import OnStep, run_steps
from synth.seeding import derive_seed, generator

MAX_GRADIENT_NORM = 1.0
CHAIN_STRIDE = 50
"""Timesteps that one reverse step jumps in SDAS's chain of 20; v learns to serve such jumps too."""


def train_ddpm(
    accelerator: Accelerator,
    config: TrainConfig,
    images: np.ndarray,
    folder: Path,
    on_step: OnStep | None = None,
    checkpoint_steps: int | None = None,
) -> UNet2DModel:
    """Train on images, uint8 [N, H, W, 3] at the network's size.

    Returns the network with averaged weights, on its device. The state in `folder` is continued
    when there is one. Raises UserError when the batch cannot be shared evenly by the processes, or
    the loss diverges.
    """
    if config.batch_size % accelerator.num_processes:
        raise UserError(
            f"batch_size: got {config.batch_size}, must be a multiple of the "
            f"{accelerator.num_processes} processes"
        )
    with seeded_init(derive_seed(config.seed)):
        unet = build_unet(config.unet)
    unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stubs)
    optimizer = torch.optim.Adam(unet.parameters(), lr=config.learning_rate, fused=True)
    model, optimizer = accelerator.prepare(unet, optimizer)
    ema = EMAModel(unet.parameters(), decay=config.ema_decay, foreach=True)
    schedule = noise_schedule().to(accelerator.device)
    strided = strided_schedule(CHAIN_STRIDE).to(accelerator.device)

    def step_function(step: int) -> dict[str, Tensor]:
        batch = draw_batch(
            config, images, step, accelerator.process_index, accelerator.num_processes
        )
        x_0, eps, t = (tensor.to(accelerator.device) for tensor in batch)
        rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        terms = backward(accelerator, model, schedule, strided, x_0, eps, t)
        norm = accelerator.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        assert norm is not None
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        return {**terms, "gradient_norm": norm}

    run_steps(
        accelerator,
        step_function,
        folder=folder,
        num_steps=config.num_steps,
        model=model,
        optimizer=optimizer,
        ema=ema,
        checkpoint_steps=checkpoint_steps,
        on_step=on_step,
    )
    ema.copy_to(unet.parameters())
    return unet.eval()


def backward(
    accelerator: Accelerator,
    model: torch.nn.Module,
    schedule: NoiseSchedule,
    strided: NoiseSchedule,
    x_0: Tensor,
    eps: Tensor,
    t: Tensor,
) -> dict[str, Tensor]:
    """Forward and backward pass of the losses on one batch; their mean terms."""
    x_t = add_noise(schedule, x_0, eps, t).contiguous(memory_format=torch.channels_last)
    output = model(x_t, t).sample
    loss = hybrid_loss(schedule, x_0, eps, t, output)
    stride_vlb = stride_loss(strided, CHAIN_STRIDE, x_0, eps, t, output)
    terms = {"mse": loss.mse.mean(), "vlb": loss.vlb.mean(), "stride_vlb": stride_vlb.mean()}
    total = torch.stack(list(terms.values())).sum()
    accelerator.backward(total)
    return {"loss": total, **terms}


def draw_batch(
    config: TrainConfig, images: np.ndarray, step: int, process: int = 0, num_processes: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """A process's share of batch `step`: x_0, eps, t.

    x_0 in [-1, 1] and eps are float32 [n, C, H, W], timesteps t int64 [n]. Position p of the batch
    has a generator of its own, and images come in shuffled epochs over all positions, so that the
    batch is the same however many processes share it.
    """
    rows, noises, timesteps = [], [], []
    for position in range(process, config.batch_size, num_processes):
        epoch, place = divmod(step * config.batch_size + position, len(images))
        order = np.random.default_rng(derive_seed(config.seed, 1, epoch)).permutation(len(images))
        g = generator(config.seed, 2, step, position)
        image = images[order[place]]
        flip_horizontal, flip_vertical = (torch.rand(2, generator=g) < 0.5).tolist()
        if config.flip_horizontal and flip_horizontal:
            image = image[:, ::-1]
        if config.flip_vertical and flip_vertical:
            image = image[::-1]
        channels = image[..., : config.unet.num_channels].copy()
        rows.append(torch.from_numpy(channels).permute(2, 0, 1))
        timesteps.append(torch.randint(NUM_TRAIN_TIMESTEPS, (), generator=g))
        noises.append(torch.randn(config.unet.num_channels, *config.unet.image_size, generator=g))
    x_0 = torch.stack(rows).float() / 127.5 - 1
    return x_0, torch.stack(noises), torch.stack(timesteps)

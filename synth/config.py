"""What can be chosen for a diffusion model and its training; presets are named instances."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from synth.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]
Foreground = Literal["auto", "everything"]
NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of the denoising U-Net. Level 0 has the full image size, every further one half."""

    image_size: tuple[int, int] = (64, 64)
    """Height and width in pixels; each a multiple of 2^(levels - 1)."""
    num_channels: Literal[1, 3] = 3
    """Colour channels: 1 for products whose images are all grey: their anomalies are grey too."""
    block_channels: tuple[int, ...] = (32, 64, 128)
    """Channels of each level, finest first."""
    layers_per_block: int = 1
    """Residual blocks per level on the way down (one more on the way up)."""
    attention_levels: int = 1
    """How many of the coarsest levels have self-attention (the middle always has)."""
    head_channels: int = 32
    """Channels of one attention head."""
    norm_groups: int = 16
    """Groups of the group normalisations."""

    def __post_init__(self) -> None:
        levels, factor = len(self.block_channels), self.size_multiple
        if not 1 <= self.attention_levels <= levels:
            raise UserError(
                f"attention_levels: got {self.attention_levels}, allowed 1 to {levels} "
                "(the number of block_channels)"
            )
        for side in self.image_size:
            if side < 4 * factor or side % factor:
                raise UserError(
                    f"image size: got {self.image_size[0]}x{self.image_size[1]}, but this network "
                    f"halves the image {levels - 1} times: each side must be a multiple of "
                    f"{factor} and at least {4 * factor}; "
                    f"try {nearest_multiple(side, factor)} for {side}"
                )
        for channels in self.block_channels:
            if channels % self.norm_groups or channels % self.head_channels:
                raise UserError(
                    f"block_channels: got {channels}, each must be a multiple of norm_groups "
                    f"({self.norm_groups}) and head_channels ({self.head_channels})"
                )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "UNetConfig":
        """From plain JSON types. Raises TypeError for unknown or missing fields."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)

    @property
    def size_multiple(self) -> int:
        """Both sides of the image are multiples of this."""
        return 2 ** (len(self.block_channels) - 1)


def nearest_multiple(side: int, factor: int) -> int:
    """The multiple of `factor` nearest to `side`, at least four times `factor`."""
    return max(4 * factor, round(side / factor) * factor)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a diffusion model is trained. One step is one optimiser update on `batch_size` images."""

    unet: UNetConfig = UNetConfig()
    num_steps: int = 360
    """Optimiser steps."""
    batch_size: int = 16
    """Images per step over all processes."""
    learning_rate: float = 1e-3
    """Of Adam, constant after the warm-up."""
    warmup_steps: int = 50
    """Steps in which the learning rate rises linearly from 0."""
    ema_decay: float = 0.9999
    """Upper limit of the averaging decay (1 + n) / (10 + n) at step n."""
    flip_horizontal: bool = False
    """Mirror training images left to right half of the time; only where the product allows it."""
    flip_vertical: bool = False
    """Mirror training images top to bottom half of the time; only where the product allows it."""
    precision: Precision = "auto"
    """Arithmetic of the U-Net; auto measures which is faster on this device."""
    seed: int = 0
    """Of weights, batches, timesteps and noise."""

    def __post_init__(self) -> None:
        for name, value in (("num_steps", self.num_steps), ("batch_size", self.batch_size)):
            if value < 1:
                raise UserError(f"{name}: got {value}, must be at least 1")
        if self.warmup_steps < 0 or self.seed < 0:
            raise UserError(
                f"warmup_steps and seed must not be negative, got {self.warmup_steps}, {self.seed}"
            )
        if not 0 < self.learning_rate < 1:
            raise UserError(f"learning_rate: got {self.learning_rate}, must lie between 0 and 1")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay: got {self.ema_decay}, must be at least 0 and below 1")

    def with_size(self, image_size: tuple[int, int]) -> "TrainConfig":
        """The same configuration for another image size."""
        return replace(self, unet=replace(self.unet, image_size=image_size))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SdasConfig:
    """How anomaly images are drawn from a trained model."""

    strength: tuple[float, float] = (0.1, 0.2)
    """Range of s, drawn per image; the reverse steps' variance is multiplied by 1 + s."""
    num_steps: int = 20
    """Reverse steps, a divisor of 1000 from 2 on: they are spaced evenly over all timesteps."""
    seed: int = 0
    """Of every image, together with its index."""

    def __post_init__(self) -> None:
        low, high = self.strength
        if not 0 <= low <= high < math.inf:
            raise UserError(
                f"strength: got {low} to {high}, must be two numbers with 0 <= low <= high "
                "(0 is the plain DDPM, 0.1 to 0.2 the paper's range)"
            )
        if self.num_steps < 2 or NUM_TRAIN_TIMESTEPS % self.num_steps:
            raise UserError(
                f"num_steps: got {self.num_steps}, must divide {NUM_TRAIN_TIMESTEPS}; "
                "try 20 (the paper's), 50, 100, 250 or 1000"
            )
        if self.seed < 0:
            raise UserError(f"seed: got {self.seed}, must not be negative")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


PRESETS: dict[str, TrainConfig] = {
    # 3.2 M parameters, 64 px: minutes on two CPU cores.
    "tiny": TrainConfig(),
    # 3.3 M parameters, 128 px: hours on two CPU cores; made for a GPU.
    "small": TrainConfig(
        unet=UNetConfig(image_size=(128, 128), block_channels=(32, 32, 64, 128)),
        num_steps=4000,
        learning_rate=5e-4,
        warmup_steps=200,
    ),
}

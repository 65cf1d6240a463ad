"""What can be chosen for a diffusion model and its training; presets are named instances."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from synth.base.errors import UserError
from synth.base.options import Precision, Tracker
from synth.diffusion.prediction import Prediction, PredictionKind
from synth.diffusion.spectrum import Spectrum, frozen
from synth.sia.strength import PAPER, Strength

Style = Literal["adm", "ddpm", "diffusers"]
MIN_SIDE_PX = 8
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
    attention_levels: tuple[int, ...] = (2,)
    """Levels that have self-attention (the middle always has)."""
    head_channels: int | None = 32
    """Channels of one attention head; None is one head over all channels."""
    norm_groups: int = 16
    """Groups of the group normalisations."""
    style: Style = "adm"
    """How blocks resample and take in the timestep: a key of `synth.diffusion.ddpm.STYLES`."""
    num_categories: int | None = None
    """Categories that one conditional network knows; None is one category, without embedding."""
    prediction: PredictionKind = "epsilon"
    """What the network predicts (see `synth.diffusion.prediction`)."""
    mu: float | None = None
    """Mean of the training images' pixels in [-1, 1], for edm; None until they are known."""
    sigma_data: float | None = None
    """Standard deviation of the same pixels, for edm."""
    spectrum: Spectrum | None = None
    """Mean image and spectrum of the training images, for wiener."""

    def __post_init__(self) -> None:
        if self.prediction not in get_args(PredictionKind):
            allowed = ", ".join(get_args(PredictionKind))
            raise UserError(f"prediction: got {self.prediction!r}, allowed are {allowed}")
        if self.mu is not None and not -1 <= self.mu <= 1:
            raise UserError(f"mu: got {self.mu}, must lie between -1 and 1")
        if self.sigma_data is not None and not 0 < self.sigma_data <= 1:
            raise UserError(f"sigma_data: got {self.sigma_data}, must be greater than 0, 1 at most")
        levels = len(self.block_channels)
        wrong = [level for level in self.attention_levels if not 0 <= level < levels]
        if wrong:
            raise UserError(
                f"attention_levels: got {wrong[0]}, allowed 0 to {levels - 1} "
                "(the levels that block_channels names)"
            )
        self.require_size(self.image_size)
        attended = {*self.attention_levels, levels - 1}
        for level, channels in enumerate(self.block_channels):
            head = (self.head_channels or channels) if level in attended else 1
            if channels % self.norm_groups or channels % head:
                raise UserError(
                    f"block_channels: got {channels}, each must be a multiple of norm_groups "
                    f"({self.norm_groups}) and, with attention, head_channels "
                    f"({self.head_channels})"
                )
        if self.num_categories is not None and self.num_categories < 1:
            raise UserError(f"num_categories: got {self.num_categories}, must be at least 1")

    def require_size(self, image_size: tuple[int, int]) -> None:
        """Raise UserError for a size that the network cannot halve down to its coarsest level."""
        factor = self.size_multiple
        for side in image_size:
            if side < smallest_side(factor) or side % factor:
                raise UserError(
                    f"image size: got {image_size[0]}x{image_size[1]}, but this network halves "
                    f"the image {len(self.block_channels) - 1} times: each side must be a multiple "
                    f"of {factor} and at least {smallest_side(factor)}; "
                    f"try {nearest_multiple(side, factor)} for {side}"
                )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "UNetConfig":
        """From plain JSON types. Raises TypeError for unknown or missing fields.

        attention_levels was the number of coarsest levels before they could be chosen.
        """
        fields: dict[str, Any] = {name: frozen(value) for name, value in values.items()}
        if fields.get("spectrum") is not None:
            fields["spectrum"] = Spectrum(**fields["spectrum"])
        if isinstance(fields.get("attention_levels"), int):
            levels = len(fields["block_channels"])
            fields["attention_levels"] = tuple(range(levels - fields["attention_levels"], levels))
        return cls(**fields)

    @property
    def predicted(self) -> Prediction:
        """How images follow from the network's output.

        Raises UserError where the kind lacks its statistics, or has those of another kind or size.
        """
        found = (self.mu is not None, self.sigma_data is not None, self.spectrum is not None)
        kind, edm = self.prediction, self.prediction == "edm"
        if found != (edm, edm, kind == "wiener"):
            raise UserError(
                f"prediction: got {kind} with mu {self.mu}, sigma_data {self.sigma_data} and "
                f"{'a' if found[2] else 'no'} spectrum; edm needs the mean and standard deviation "
                "of the training images, wiener their spectrum, the others neither"
            )
        if self.spectrum is not None:
            self.spectrum.require_shape(self.num_channels, *self.image_size)
        if self.mu is not None and self.sigma_data is not None:
            return Prediction(kind, self.mu, self.sigma_data)
        return Prediction(kind, spectrum=self.spectrum)

    @property
    def size_multiple(self) -> int:
        """Both sides of the image are multiples of this."""
        return 2 ** (len(self.block_channels) - 1)


def smallest_side(factor: int) -> int:
    """The least side that is a multiple of `factor`: 8 pixels or more."""
    return factor * math.ceil(MIN_SIDE_PX / factor)


def nearest_multiple(side: int, factor: int) -> int:
    """The multiple of `factor` nearest to `side` that is at least `smallest_side`."""
    return max(smallest_side(factor), round(side / factor) * factor)


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
    timestep_power: float = 1.0
    """t is T u^p for uniform u: above 1, little noise is trained on more often than much.

    Most of the linear schedule's timesteps are nearly pure noise, which tells little but the mean.
    """
    warmup_steps: int = 50
    """Steps in which the learning rate rises linearly from 0."""
    ema_decay: float = 0.9999
    """Upper limit of the averaging decay (1 + n) / (10 + n) at step n."""
    flip_horizontal: bool = False
    """Mirror training images left to right half of the time; only where the product allows it."""
    flip_vertical: bool = False
    """Mirror training images top to bottom half of the time; only where the product allows it."""
    rotate: bool = False
    """Turn training images by 0, 90, 180 or 270 degrees; only where the product allows it."""
    precision: Precision = "auto"
    """Arithmetic of the U-Net; auto goes by what the hardware can do."""
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
        if not 0 < self.timestep_power < math.inf:
            raise UserError(f"timestep_power: got {self.timestep_power}, must be greater than 0")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"ema_decay: got {self.ema_decay}, must be at least 0 and below 1")
        height, width = self.unet.image_size
        if self.rotate and height != width:
            raise UserError(
                f"rotate: got images of {height}x{width}, which a quarter turn does not map onto "
                "themselves; give a square --size, or leave --rotate out"
            )

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.warmup_steps))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """From plain JSON types. Raises TypeError for unknown or missing fields."""
        return cls(**{**values, "unet": UNetConfig.from_json(values["unet"])})

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a training is computed and watched. It may change from run to run: no result does."""

    accumulate: int = 1
    """Parts that each process computes its share of a batch in, one after the other."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    sample_every: int | None = None
    """Steps between sheets of samples; None: only at the end."""
    keep_checkpoints: int = 0
    """How many of the models at those steps are kept, the newest."""
    tracker: Tracker = "none"
    """Where accelerate logs the losses, besides the trace."""

    def __post_init__(self) -> None:
        for name, value in (("accumulate", self.accumulate), ("sample_every", self.sample_every)):
            if value is not None and value < 1:
                raise UserError(f"{name}: got {value}, must be at least 1")
        if self.keep_checkpoints < 0:
            raise UserError(f"keep_checkpoints: got {self.keep_checkpoints}, must be 0 or more")
        if self.keep_checkpoints and self.sample_every is None:
            raise UserError(
                f"keep_checkpoints: got {self.keep_checkpoints} without an interval; "
                "give --sample-every too"
            )


@dataclass(frozen=True, kw_only=True)
class SdasConfig:
    """How anomaly images are drawn from a trained model."""

    strength: Strength = PAPER
    """Which s each image has; the reverse steps' variance is multiplied by 1 + s."""
    num_steps: int = 20
    """Reverse steps, a divisor of 1000 from 2 on: they are spaced evenly over all timesteps."""
    seed: int = 0
    """Of every image, together with its index."""

    def __post_init__(self) -> None:
        if self.num_steps < 2 or NUM_TRAIN_TIMESTEPS % self.num_steps:
            raise UserError(
                f"num_steps: got {self.num_steps}, must divide {NUM_TRAIN_TIMESTEPS}; "
                "try 20 (the paper's), 50, 100, 250 or 1000"
            )
        if self.seed < 0:
            raise UserError(f"seed: got {self.seed}, must not be negative")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "strength": self.strength.to_json()}


PRESETS: dict[str, TrainConfig] = {
    # 3.2 M parameters, 64 px: minutes on two CPU cores.
    "tiny": TrainConfig(unet=UNetConfig(prediction="wiener"), timestep_power=2.0),
    # 3.3 M parameters, 128 px: hours on two CPU cores; made for a GPU.
    "small": TrainConfig(
        unet=UNetConfig(
            image_size=(128, 128),
            block_channels=(32, 32, 64, 128),
            attention_levels=(3,),
            prediction="wiener",
        ),
        num_steps=4000,
        learning_rate=5e-4,
        warmup_steps=200,
        timestep_power=2.0,
    ),
    # 113.7 M parameters, 256 px, for a GPU: the network of the public google/ddpm-*-256 models
    # (Ho et al., 2020), so that --init-from fits them name for name. Not yet trained by us.
    "base": TrainConfig(
        unet=UNetConfig(
            image_size=(256, 256),
            block_channels=(128, 128, 256, 256, 512, 512),
            layers_per_block=2,
            attention_levels=(4,),
            head_channels=None,
            norm_groups=32,
            style="ddpm",
            prediction="wiener",
        ),
        num_steps=15_000,
        timestep_power=2.0,
        learning_rate=1e-4,
        warmup_steps=500,
    ),
    # 552.8 M parameters, 256 px: RealNet's network (ADM, Dhariwal and Nichol, 2021) with its batch,
    # learning rate and number of updates. For a large GPU; not yet trained by us.
    "adm": TrainConfig(
        unet=UNetConfig(
            image_size=(256, 256),
            block_channels=(256, 256, 512, 512, 1024, 1024),
            layers_per_block=2,
            attention_levels=(3, 4, 5),
            head_channels=64,
            norm_groups=32,
        ),
        num_steps=15_000,
        batch_size=60,
        learning_rate=1e-4,
        warmup_steps=0,
    ),
}

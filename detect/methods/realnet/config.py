"""RealNet's configuration and its presets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Literal

from synth.base.backbones import DEFAULT_BACKBONE, BackboneConfig
from synth.base.errors import UserError

RESNET_RMS = 1 / 3
"""Root mean square of an ImageNet ResNet-18's features: 0.33, 0.29, 0.39 in layers 1 to 3."""


@dataclass(frozen=True, kw_only=True)
class RealNetConfig:
    """Everything that defines a RealNet and its training, but for the data."""

    image_size: tuple[int, int]
    """Height and width in pixels that images are resized to."""
    backbone: BackboneConfig
    """The frozen feature extractor."""
    num_selected: tuple[int, ...]
    """Channels AFS keeps, per backbone layer (m_k)."""
    blocks: tuple[tuple[int, ...], ...] | None = None
    """Backbone layers that share one G_k, at the size of the first; None is one layer each."""
    scale_features: bool = False
    """Bring features of quite another size to about that of a ResNet's: not the paper's way.

    With features fifteen times as large (MobileNetV2) the reconstruction loss would outweigh the
    segmentation loss 200 times.
    """
    feature_exponents: tuple[int, ...] = ()
    """Layer k is divided by 2 to this power, which is exact; set by `scaled`, else none is."""
    separable: bool = False
    """Depthwise convolutions, in smaller networks G_k and in the head: not the paper's."""
    width_factor: float = 0.5
    """First width of a reconstruction U-Net over its channels, m_k or the sum of its block's."""
    multipliers: tuple[int, ...] = (1, 2, 4)
    """Widths of the U-Nets' levels over the first; each level halves the size."""
    num_res_blocks: int = 2
    """Residual blocks per U-Net level on the way down (one more on the way up)."""
    num_max: int = 256
    """Residual channels RRS keeps by their maximum."""
    num_mean: int = 256
    """Residual channels RRS keeps by their mean; with num_max the width r of the head."""
    head_widths: tuple[int, int, int, int] = (128, 32, 8, 4)
    """Channels of the head's narrowing convolutions."""
    head_activation: Literal["relu", "silu"] = "relu"
    """Of the narrowing convolutions: the paper's ReLU, or SiLU, whose maps do not stop at 0.5."""
    batch_size: int = 16
    """Images per step."""
    num_steps: int = 10_000
    """Optimiser steps."""
    num_epochs: int | None = None
    """Passes over the images to train on; once these are known, `for_images` makes steps of it."""
    learning_rate: float = 1e-4
    """Of Adam, constant."""
    num_afs_batches: int = 64
    """Batches of blended images that AFS scores channels on."""
    seed: int = 0
    """Of the initial weights."""
    official: bool = False
    """Train as the authors' code: empty masks stay, blended pixels are truncated, and the last
    step's weights are not averaged nor their normalisations settled."""

    def __post_init__(self) -> None:
        if len(self.num_selected) != len(self.backbone.layers):
            raise UserError(
                f"num_selected: got {len(self.num_selected)} counts for "
                f"{len(self.backbone.layers)} backbone layers; give one per layer"
            )
        if sum(self.layer_blocks, ()) != self.backbone.layers:
            raise UserError(
                f"blocks: got {self.blocks} for backbone layers {self.backbone.layers}; every "
                "layer belongs to one block, in ascending order"
            )
        if len(self.feature_exponents) not in (0, len(self.backbone.layers)):
            raise UserError(
                f"feature_exponents: got {len(self.feature_exponents)} for "
                f"{len(self.backbone.layers)} backbone layers; give one per layer or none"
            )
        if any(width < 1 for width in self.reconstruction_widths):
            raise UserError(
                f"num_selected, width_factor: got {self.num_selected} and {self.width_factor}; "
                "every count times the factor must be 1 or more"
            )
        total = sum(self.num_selected)
        if not all(0 <= count <= total for count in (self.num_max, self.num_mean)):
            raise UserError(
                f"num_max, num_mean: got {self.num_max} and {self.num_mean}; "
                f"allowed are 0 to {total}, the sum of num_selected"
            )
        _check_positive(
            {
                "image_size": min(self.image_size),
                "num_max + num_mean": self.num_max + self.num_mean,
                "batch_size": self.batch_size,
                "num_steps": self.num_steps,
                "num_epochs": 1 if self.num_epochs is None else self.num_epochs,
                "learning_rate": self.learning_rate,
                "num_afs_batches": self.num_afs_batches,
            },
        )

    @property
    def layer_blocks(self) -> tuple[tuple[int, ...], ...]:
        """The backbone layers of each block."""
        return self.blocks or tuple((layer,) for layer in self.backbone.numbers)

    @property
    def block_channels(self) -> tuple[int, ...]:
        """Channels that each block's G_k reconstructs: the sum of its layers' m_k."""
        kept = dict(zip(self.backbone.numbers, self.num_selected, strict=True))
        return tuple(sum(kept[layer] for layer in block) for block in self.layer_blocks)

    @property
    def reconstruction_widths(self) -> tuple[int, ...]:
        """First width of each block's U-Net."""
        return tuple(round(m * self.width_factor) for m in self.block_channels)

    def with_layers(self, layers: tuple[int, ...]) -> "RealNetConfig":
        """The same for other backbone layers.

        Each takes its m_k, and its place in a block, from the layer of its number or the nearest.
        """
        own = self.backbone.numbers
        nearest = {layer: min(own, key=lambda k: abs(k - layer)) for layer in layers}
        kept = dict(zip(own, self.num_selected, strict=True))
        blocks = [tuple(k for k in layers if nearest[k] in block) for block in self.layer_blocks]
        return self._keeping(
            tuple(kept[nearest[layer]] for layer in layers),
            backbone=replace(self.backbone, layers=layers),
            blocks=None if self.blocks is None else tuple(block for block in blocks if block),
        )

    def fitted(self, channels: tuple[int, ...]) -> "RealNetConfig":
        """The same for layers with so many channels, where these are fewer than m_k."""
        return self._keeping(
            tuple(min(m, C) for m, C in zip(self.num_selected, channels, strict=True))
        )

    def scaled(self, feature_rms: Sequence[float]) -> "RealNetConfig":
        """The same for layers whose features have these root mean squares, if they are scaled.

        The exponents are 0 where these lie within a factor of four of RESNET_RMS.
        """
        if not self.scale_features:
            return self
        powers = [math.log2(max(size, 1e-6) / RESNET_RMS) for size in feature_rms]
        exponents = tuple(round(power) if abs(power) > 2 else 0 for power in powers)
        return replace(self, feature_exponents=exponents)

    def _keeping(self, num_selected: tuple[int, ...], **changes: Any) -> "RealNetConfig":
        """Change the m_k; RRS keeps no more residual channels than there are."""
        total = sum(num_selected)
        return replace(
            self,
            num_selected=num_selected,
            num_max=min(self.num_max, total),
            num_mean=min(self.num_mean, total),
            **changes,
        )

    def for_images(self, num_images: int) -> "RealNetConfig":
        """The same configuration with its length in steps for so many images to train on."""
        if self.num_epochs is None:
            return self
        num_steps = math.ceil(self.num_epochs * num_images / self.batch_size)
        return replace(self, num_steps=num_steps, num_epochs=None)

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "RealNetConfig":
        """Return the configuration that `to_json` wrote; UserError for unknown or absent fields."""
        values = _arguments(RealNetConfig, data)
        if values.get("blocks") is not None:
            values["blocks"] = tuple(tuple(block) for block in values["blocks"])
        values["backbone"] = BackboneConfig(**_arguments(BackboneConfig, values["backbone"]))
        return RealNetConfig(**values)


def _check_positive(values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if value <= 0:
            raise UserError(f"{name}: got {value}, must be greater than 0")


def _arguments(
    cls: type[RealNetConfig] | type[BackboneConfig], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a dataclass's arguments from JSON values, where tuples are lists.

    A field with a default may be absent: older models do not know of it.
    """
    known = {field.name for field in fields(cls)}
    needed = {field.name for field in fields(cls) if field.default is MISSING}
    if not needed <= set(data) <= known:
        unknown, absent = sorted(set(data) - known), sorted(needed - set(data))
        raise UserError(
            f"{cls.__name__}: unknown fields {unknown}, absent fields {absent}; "
            "use the config.json that was saved with the model"
        )
    return {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}


# 128 px, 2.0 M trained parameters: for a laptop's CPU.
TINY = RealNetConfig(
    image_size=(128, 128),
    backbone=DEFAULT_BACKBONE,
    num_selected=(32, 64, 64),
    width_factor=0.25,
    num_max=32,
    num_mean=32,
    head_widths=(32, 16, 8, 4),
    scale_features=True,
    head_activation="silu",
    num_steps=400,
    learning_rate=1e-3,
    num_afs_batches=8,
)

# 256 px, 7.8 M trained parameters: minutes on a GPU.
SMALL = RealNetConfig(
    image_size=(256, 256),
    backbone=DEFAULT_BACKBONE,
    num_selected=(64, 128, 128),
    width_factor=0.25,
    num_max=64,
    num_mean=64,
    head_widths=(64, 32, 8, 4),
    scale_features=True,
    head_activation="silu",
    num_steps=5_000,
    learning_rate=4e-4,
    num_afs_batches=32,
)

# 256 px, 0.6 M trained parameters: for processors without a GPU, in training and in use.
COMPACT = RealNetConfig(
    image_size=(256, 256),
    backbone=DEFAULT_BACKBONE,
    num_selected=(64, 128, 128),
    separable=True,
    num_res_blocks=1,
    num_max=64,
    num_mean=64,
    head_widths=(32, 16, 8, 4),
    scale_features=True,
    head_activation="silu",
    num_steps=2_000,
    learning_rate=3e-3,
    num_afs_batches=32,
)

# The paper's sizes and length, 524.1 M trained parameters. AFS keeps all channels of layers 1 and
# 2, as the authors' code. Not yet trained by us.
PAPER = RealNetConfig(
    image_size=(256, 256),
    backbone=BackboneConfig(name="wide_resnet50_2.racm_in1k", layers=(1, 2, 3, 4)),
    num_selected=(256, 512, 512, 256),
    num_epochs=1000,
)

# The authors' architecture C, 938.5 M trained parameters: layers 1 and 2 are reconstructed together
# at stride 4, layers 3 and 4 at stride 16. Not yet trained by us.
PAPER_C = replace(PAPER, blocks=((1, 2), (3, 4)))

# What the authors kept of RealNet in HiAD (arXiv 2508.12931), 265.0 M trained parameters. There the
# anomalies come from textures, and may lie anywhere. Not yet trained by us.
HIAD = replace(
    PAPER,
    backbone=replace(PAPER.backbone, layers=(2, 3)),
    num_selected=(256, 512),
    num_epochs=300,
)

PRESETS = {
    "tiny": TINY,
    "compact": COMPACT,
    "small": SMALL,
    "paper": PAPER,
    "paper-c": PAPER_C,
    "hiad": HIAD,
}

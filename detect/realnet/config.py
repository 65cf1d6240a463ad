"""RealNet's configuration and its presets."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

from synth.errors import UserError
from synth.features import BackboneConfig


@dataclass(frozen=True, kw_only=True)
class RealNetConfig:
    """Everything that defines a RealNet and its training, but for the data."""

    image_size: tuple[int, int]
    """Height and width in pixels that images are resized to."""
    backbone: BackboneConfig
    """The frozen feature extractor."""
    num_selected: tuple[int, ...]
    """Channels AFS keeps, per backbone layer (m_k)."""
    reconstruction: Literal["unet", "separable"] = "unet"
    """Networks G_k: the paper's U-Nets, or small ones of depthwise convolutions."""
    width_factor: float = 0.5
    """First width of a reconstruction U-Net over its m_k."""
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
    batch_size: int = 16
    """Images per step."""
    num_steps: int = 10_000
    """Optimiser steps."""
    learning_rate: float = 1e-4
    """Of Adam, constant."""
    num_afs_batches: int = 64
    """Batches of blended images that AFS scores channels on."""
    seed: int = 0
    """Of the initial weights."""

    def __post_init__(self) -> None:
        if len(self.num_selected) != len(self.backbone.layers):
            raise UserError(
                f"num_selected: got {len(self.num_selected)} counts for "
                f"{len(self.backbone.layers)} backbone layers; give one per layer"
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
                "learning_rate": self.learning_rate,
                "num_afs_batches": self.num_afs_batches,
            },
        )

    @property
    def reconstruction_widths(self) -> tuple[int, ...]:
        """First width of each layer's U-Net."""
        return tuple(round(m * self.width_factor) for m in self.num_selected)

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "RealNetConfig":
        """Return the configuration that `to_json` wrote; UserError for unknown or absent fields."""
        values = _arguments(RealNetConfig, data)
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
    backbone=BackboneConfig(name="resnet18.tv_in1k", layers=(1, 2, 3)),
    num_selected=(32, 64, 64),
    width_factor=0.25,
    num_max=32,
    num_mean=32,
    head_widths=(32, 16, 8, 4),
    num_steps=400,
    learning_rate=1e-3,
    num_afs_batches=8,
)

# 256 px, 7.8 M trained parameters: minutes on a GPU.
SMALL = RealNetConfig(
    image_size=(256, 256),
    backbone=BackboneConfig(name="resnet18.tv_in1k", layers=(1, 2, 3)),
    num_selected=(64, 128, 128),
    width_factor=0.25,
    num_max=64,
    num_mean=64,
    head_widths=(64, 32, 8, 4),
    num_steps=5_000,
    learning_rate=4e-4,
    num_afs_batches=32,
)

# 256 px, 0.3 M trained parameters: for processors without a GPU, in training and in use.
COMPACT = RealNetConfig(
    image_size=(256, 256),
    backbone=BackboneConfig(name="resnet18.tv_in1k", layers=(1, 2, 3)),
    num_selected=(32, 64, 64),
    reconstruction="separable",
    num_res_blocks=1,
    num_max=32,
    num_mean=32,
    head_widths=(32, 16, 8, 4),
    num_steps=2_000,
    learning_rate=1e-3,
    num_afs_batches=32,
)

# The paper's sizes, 524.1 M trained parameters. Its 1000 epochs are about 15 000 steps of 16 images
# for an average MVTec AD category. AFS keeps all channels of layers 1 and 2, as the authors' code.
PAPER = RealNetConfig(
    image_size=(256, 256),
    backbone=BackboneConfig(name="wide_resnet50_2.racm_in1k", layers=(1, 2, 3, 4)),
    num_selected=(256, 512, 512, 256),
    num_steps=15_000,
)

PRESETS = {"tiny": TINY, "compact": COMPACT, "small": SMALL, "paper": PAPER}

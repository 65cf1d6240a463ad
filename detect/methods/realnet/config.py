"""RealNet's configuration and its presets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from detect.config import TrainedConfig, require_fields_positive
from detect.images import to_batch
from synth.base.backbones import DEFAULT_BACKBONE, Backbone, BackboneConfig
from synth.base.errors import UserError
from synth.pictures import Images

if TYPE_CHECKING:
    from detect.options import TrainOptions

RESNET_RMS = 1 / 3
"""Root mean square of an ImageNet ResNet-18's features: 0.33, 0.29, 0.39 in layers 1 to 3."""
SCALE_IMAGES = 16
"""Normal images on which the size of features is measured."""


@dataclass(frozen=True, kw_only=True)
class RealNetConfig(TrainedConfig):
    """Everything that defines a RealNet and its training, but for the data."""

    num_selected: tuple[int, ...]
    """Channels AFS keeps, per backbone layer (m_k)."""
    blocks: tuple[tuple[int, ...], ...] | None = None
    """Backbone layers that share one G_k, at the size of the first; None is one layer each."""
    scale_features: bool = False
    """Bring features of a very different size to about that of a ResNet's: not the paper's way.

    With features fifteen times as large (MobileNetV2) the reconstruction loss would outweigh the
    segmentation loss 200 times.
    """
    feature_exponents: tuple[int, ...] = ()
    """Layer k is divided by 2 to this power, which is exact; set by `scaled` only."""
    separable: bool = False
    """Depthwise convolutions, in smaller networks G_k and in the head: not the paper's."""
    width_factor: float = 0.5
    """First width of a reconstruction U-Net over its channels, m_k or the sum of its block's."""
    multipliers: tuple[int, ...] = (1, 2, 4)
    """Widths of the U-Nets' levels over the first; each level halves the size."""
    num_res_blocks: int = 2
    """Residual blocks per U-Net level on the way down (one more on the way up)."""
    norm_groups: int | None = None
    """Groups of the U-Nets' group norms; None is 32, or fewer where they had less than 4 channels.

    The authors have 32 at any width; groups of one channel erase every channel's level.
    """
    num_max: int = 256
    """Residual channels RRS keeps by their maximum."""
    num_mean: int = 256
    """Residual channels RRS keeps by their mean; with num_max the width r of the head."""
    head_widths: tuple[int, int, int, int] = (128, 32, 8, 4)
    """Channels of the head's narrowing convolutions."""
    head_activation: Literal["relu", "silu"] = "relu"
    """In the narrowing convolutions: the paper's ReLU, or SiLU, whose maps do not stop at 0.5."""
    num_afs_batches: int = 64
    """Batches of blended images that AFS scores channels on."""
    official: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
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
        groups = self.norm_groups
        if groups is not None and any(width % groups for width in self.reconstruction_widths):
            raise UserError(
                f"norm_groups: got {groups} for U-Nets that are {self.reconstruction_widths} "
                "channels wide, which must be multiples of it; choose another backbone, other "
                "layers or another preset"
            )
        total = sum(self.num_selected)
        if not all(0 <= count <= total for count in (self.num_max, self.num_mean)):
            raise UserError(
                f"num_max, num_mean: got {self.num_max} and {self.num_mean}; "
                f"allowed are 0 to {total}, the sum of num_selected"
            )
        if not self.num_max + self.num_mean:
            raise UserError("num_max, num_mean: got 0 and 0; one must be greater than 0")
        require_fields_positive(
            image_size=min(self.image_size), num_afs_batches=self.num_afs_batches
        )

    @property
    def stage_steps(self) -> dict[str, int]:
        """Reconstruction and segmentation are trained together."""
        return {"realnet": self.num_steps}

    @property
    def averages(self) -> bool:
        """The authors keep the last step's."""
        return not self.official

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

    def with_options(self, options: "TrainOptions") -> Self:
        """As `TrainedConfig.with_options`; the authors' code does not scale features."""
        return replace(
            super().with_options(options),
            official=options.official,
            scale_features=self.scale_features and not options.official,
        )

    def with_layers(self, layers: tuple[int | str, ...]) -> Self:
        """Return the same for other backbone layers.

        Each takes its m_k, and its place in a block, from the layer of its number or the nearest.
        Raises UserError for layers without a number.
        """
        own, layers = self.backbone.numbers, replace(self.backbone, layers=layers).numbers
        nearest = {layer: min(own, key=lambda k: abs(k - layer)) for layer in layers}
        kept = dict(zip(own, self.num_selected, strict=True))
        blocks = [tuple(k for k in layers if nearest[k] in block) for block in self.layer_blocks]
        return self._keeping(
            tuple(kept[nearest[layer]] for layer in layers),
            backbone=replace(self.backbone, layers=layers),
            blocks=None if self.blocks is None else tuple(block for block in blocks if block),
        )

    def for_data(self, backbone: Backbone, images: Sequence[Images]) -> Self:
        """Return the same with no more m_k than there are channels, and with scaled features."""
        config = self.fitted(backbone.channels).for_images(sum(map(len, images)))
        return config.scaled(feature_rms(backbone, images)) if self.scale_features else config

    def for_images(self, num_images: int) -> Self:
        """As `TrainedConfig.for_images`; the authors' epochs end with a part of a batch."""
        partial = -num_images % self.batch_size if self.official else 0
        return super().for_images(num_images + partial)

    def fitted(self, channels: tuple[int, ...]) -> Self:
        """Return the same for layers with so many channels, where these are fewer than m_k."""
        return self._keeping(
            tuple(min(m, C) for m, C in zip(self.num_selected, channels, strict=True))
        )

    def scaled(self, sizes: Sequence[float]) -> Self:
        """Return the same for layers whose features have these root mean squares, if scaled at all.

        The exponents are 0 where these lie within a factor of four of RESNET_RMS.
        """
        if not self.scale_features:
            return self
        powers = [math.log2(max(size, 1e-6) / RESNET_RMS) for size in sizes]
        exponents = tuple(round(power) if abs(power) > 2 else 0 for power in powers)
        return replace(self, feature_exponents=exponents)

    def _keeping(self, num_selected: tuple[int, ...], **changes: Any) -> Self:
        """Change the m_k; RRS keeps no more residual channels than there are."""
        total = sum(num_selected)
        return replace(
            self,
            num_selected=num_selected,
            num_max=min(self.num_max, total),
            num_mean=min(self.num_mean, total),
            **changes,
        )


@torch.no_grad()
def feature_rms(backbone: Backbone, images: Sequence[Images]) -> list[float]:
    """Root mean square of each layer's features, on a few normal images of every product."""
    each = math.ceil(SCALE_IMAGES / len(images))
    chosen = [image for product in images for image in product[:each]]
    layers = backbone(to_batch(chosen, torch.device("cpu")))
    return [x.square().mean().sqrt().item() for x in layers]


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
    norm_groups=32,
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

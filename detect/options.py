"""Options of `detect train`, whatever the detector."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from synth.base.errors import UserError
from synth.base.options import (
    OF_PRESET,
    Precision,
    PresetFloat,
    PresetInt,
    PresetSize,
    PresetStr,
    require_not_negative,
    require_positive,
    require_size,
)
from synth.data.options import Foreground

Workers = Annotated[
    int | None,
    tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 4 with a GPU, 0 without)"),
]
PresetLayers = Annotated[
    tuple[int, ...] | None, tyro.conf.arg(metavar="INT [INT ...]", help_behavior_hint=OF_PRESET)
]
BackboneColour = Annotated[
    tuple[float, float, float] | None,
    tyro.conf.arg(metavar="R G B", help_behavior_hint="(default: timm's)"),
]
Patience = Annotated[
    int | None,
    tyro.conf.arg(metavar="INT", help_behavior_hint="(default: the last step is the model)"),
]
Seeds = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT [INT ...]")]
Sources = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME[=WEIGHT] ...")]


@dataclass(frozen=True, kw_only=True)
class ChannelOptions:
    """Which channels of which network, and what they are chosen on."""

    method: Literal["realnet"] = "realnet"
    """Detector."""
    preset: Literal["tiny", "compact", "small", "paper", "paper-c", "hiad"] = "tiny"
    """tiny: 128 px, a CPU; compact: 256 px, a CPU; small: 256 px; paper, paper-c (its architecture
    C), hiad (layers 2 and 3): 256 px, 524, 939 and 265 M parameters, a GPU, lengths in epochs."""
    backbone: PresetStr = None
    """A network of timm, such as resnet18, or of torchvision with its weights."""
    backbone_weights: PresetStr = None
    """bundled (tf_efficientnet_lite0, and _lite2 with its extra), hub (timm's, downloaded once),
    torchvision, random, or a file."""
    backbone_layers: PresetLayers = None
    """1 to 4 have strides 4 to 32; of a ViT these are blocks, by default as many as the preset's
    layers, evenly over its depth, such as 3 6 9 of twelve. AFS keeps as many channels of each as of
    the preset's layer of that number, or of the nearest that it has."""
    backbone_mean: BackboneColour = None
    """Red, green and blue from 0 to 1 that a weights file was trained with."""
    backbone_std: BackboneColour = None
    """As --backbone-mean."""
    size: PresetSize = None
    """Pixels that images are squeezed to."""
    batch_size: PresetInt = None
    """Images per step over all processes."""
    foreground: Foreground = "auto"
    """Where anomalies may lie: auto finds the product, everything is the whole image."""
    official: bool = False
    """Train as the authors' code where it gives other figures: empty masks stay as normal samples,
    blended pixels are truncated, and the last step's weights stay as they are, not averaged, with
    running normalisations that are nearly those of one batch."""
    seed: int = 0
    """Of weights, batches and blending."""

    def layers(self, count: int) -> tuple[int, ...] | None:
        """Return the backbone's layers, or `count` blocks of a ViT; None leaves it to the preset.

        Raises UserError for a backbone that timm does not know.
        """
        if self.backbone_layers is not None or self.backbone is None:
            return self.backbone_layers
        from synth.base.backbones import spread_blocks  # torch would hold up `--help`

        return spread_blocks(self.backbone, count)

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        require_positive(batch_size=self.batch_size)
        require_not_negative(seed=self.seed)
        require_size(self.size)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ChannelOptions):
    """How to train."""

    num_steps: PresetInt = None
    """Optimiser steps; a finished detector trains on when this is raised."""
    patience: Patience = None
    """Stop early after so many of twenty checks without gain and keep the best one. A tenth of the
    images is not trained on for that: they are the judges, with anomalies blended in."""
    learning_rate: PresetFloat = None
    """Of Adam."""
    false_reject_rate: float = 0.05
    """Share of normal images that may be called anomalous; sets the threshold."""
    workers: Workers = None
    """Processes that blend images; changes speed only."""
    precision: Precision = "auto"
    """Arithmetic of training; auto takes the faster on this device. Scoring is fp32."""

    def check(self) -> None:
        """Raise UserError for the first value out of range."""
        super().check()
        require_positive(
            num_steps=self.num_steps, learning_rate=self.learning_rate, patience=self.patience
        )
        require_not_negative(workers=self.workers)
        if self.official and self.patience is not None:
            raise UserError("--patience: not used with --official, which keeps the last step")
        if not 0 < self.false_reject_rate < 1:
            raise UserError(
                f"--false-reject-rate: got {self.false_reject_rate}, must lie between 0 and 1; "
                "0.05 rejects up to one normal image in twenty"
            )

"""Options of `detect train` and of the commands that train, whatever the method."""

from dataclasses import dataclass, fields
from typing import Annotated

import tyro

from detect.method import Method
from detect.methods import METHODS
from synth.base.errors import UserError
from synth.base.options import (
    OF_PRESET,
    Precision,
    PresetFloat,
    PresetInt,
    PresetSize,
    PresetStr,
    option_name,
    require_not_negative,
    require_positive,
    require_size,
)
from synth.data.options import Foreground

DEFAULT_METHOD = "realnet-nn"
Workers = Annotated[
    int | None,
    tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 4 with a GPU, 0 without)"),
]
PresetLayers = Annotated[
    tuple[int | str, ...] | None,
    tyro.conf.arg(metavar="LAYER [LAYER ...]", help_behavior_hint=OF_PRESET),
]
BackboneColour = Annotated[
    tuple[float, float, float] | None,
    tyro.conf.arg(metavar="R G B", help_behavior_hint="(default: timm's)"),
]
Patience = Annotated[
    int | None,
    tyro.conf.arg(metavar="INT", help_behavior_hint="(default: the last step is the model)"),
]
MethodName = Annotated[
    str,
    tyro.conf.arg(
        metavar="{" + ",".join(METHODS) + "}",
        help="; ".join(f"{name}: {method.sentence}" for name, method in METHODS.items()) + ".",
    ),
]
SeedList = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT [INT ...]")]
Sources = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="NAME[=WEIGHT] ...", help_behavior_hint="(default: sia)"),
]


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Which method."""

    method: MethodName = DEFAULT_METHOD


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """The detector."""

    preset: Annotated[str, tyro.conf.arg(metavar="NAME")] = "tiny"
    """tiny: 128 px, for a CPU; compact: 256 px, for a CPU; small: 256 px; paper, and of realnet
    paper-c (the paper's architecture C) and hiad (layers 2 and 3): 256 px, for a GPU."""
    size: PresetSize = None
    """Pixels that images are squeezed to."""
    seed: int = 0
    """Seed of weights, batches and blending."""


@dataclass(frozen=True, kw_only=True)
class BasicOptions(PresetOptions, MethodOptions):
    """How to train."""

    num_steps: PresetInt = None
    """Optimiser steps; raise it to train a finished detector further."""
    false_reject_rate: float = 0.05
    """Share of normal images that may be called anomalous; sets the threshold."""


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """The network below, and how anomalies are blended in."""

    batch_size: PresetInt = None
    """Images per step over all processes."""
    backbone: PresetStr = None
    """A network of timm, such as resnet18, or of torchvision with its weights."""
    backbone_weights: PresetStr = None
    """bundled (tf_efficientnet_lite0, and _lite2 with its extra), hub (timm's, downloaded once),
    torchvision, random, or a file."""
    backbone_layers: PresetLayers = None
    """1 to 4 have strides 4 to 32; other maps have the names of their modules, such as blocks.5. A
    ViT has blocks instead: by default as many as the preset has layers, evenly over its depth, such
    as 3 6 9 of twelve. AFS keeps as many channels of each as of the preset's layer of that number,
    or of the nearest one."""
    backbone_mean: BackboneColour = None
    """Mean red, green and blue, from 0 to 1, that a weights file was trained with."""
    backbone_std: BackboneColour = None
    """Standard deviations that belong to --backbone-mean."""
    foreground: Foreground = "auto"
    """Where anomalies may lie: auto finds the product, everything is the whole image."""
    official: bool = False
    """Train as the authors' code does where that changes figures: empty masks stay as normal
    samples, blended pixels are truncated, and the weights of the last step are kept as they are,
    not averaged, with running normalisations that are nearly those of one batch."""


@dataclass(frozen=True, kw_only=True)
class MoreOptions(BackboneOptions):
    """Rarely needed."""

    num_epochs: PresetInt = None
    """Passes over the images to train on, in place of --num-steps."""
    learning_rate: PresetFloat = None
    """The optimiser's learning rate."""
    patience: Patience = None
    """Stop after this many of twenty checks without gain, and keep the best one. A tenth of the
    images judges, with anomalies blended in, and is not trained on."""
    precision: Precision = "auto"
    """Arithmetic of training; auto is bf16 where the hardware has instructions for it. Scoring is
    fp32."""
    workers: Workers = None
    """Processes that prepare images; changes speed only."""
    half_weights: bool = False
    """Keep the weights in fp16: half the size on disk, for a rounding of the scores that the
    threshold knows of."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(BasicOptions, MoreOptions):
    """How to train."""

    @property
    def row(self) -> Method:
        """The method's row. Raises UserError for an unknown method."""
        if self.method not in METHODS:
            raise UserError(f"--method: got {self.method}, allowed: {', '.join(METHODS)}")
        return METHODS[self.method]

    @staticmethod
    def of(*groups: PresetOptions | BackboneOptions) -> "TrainOptions":
        """Join groups of options; those in none of them keep their defaults."""
        known = {field.name for field in fields(TrainOptions)}
        given = {name: value for group in groups for name, value in vars(group).items()}
        return TrainOptions(**{name: given[name] for name in given if name in known})

    def layers(self, count: int) -> tuple[int | str, ...] | None:
        """Return the backbone's layers, or `count` blocks of a ViT; None leaves it to the preset.

        Raises UserError for a backbone that timm does not know.
        """
        if self.backbone_layers is not None or self.backbone is None:
            return self.backbone_layers
        from synth.base.backbones import spread_blocks  # torch would hold up `--help`

        return spread_blocks(self.backbone, count)

    def check(self) -> None:
        """Raise UserError for the first value that is not allowed.

        Values that become part of a method's configuration are checked there.
        """
        if self.preset not in self.row.presets:
            allowed = ", ".join(self.row.presets)
            raise UserError(f"--preset: got {self.preset}, allowed for {self.method}: {allowed}")
        require_positive(patience=self.patience, num_epochs=self.num_epochs)
        require_not_negative(seed=self.seed, workers=self.workers)
        require_size(self.size)
        if self.num_steps is not None and self.num_epochs is not None:
            raise UserError("--num-epochs: not used with --num-steps; give one of them")
        if self.official and self.patience is not None:
            raise UserError("--patience: not used with --official, which keeps the last step")
        if not 0 < self.false_reject_rate < 1:
            raise UserError(
                f"--false-reject-rate: got {self.false_reject_rate}, must lie between 0 and 1; "
                "0.05 rejects up to one normal image in twenty"
            )

    def unused(self, **others: bool) -> list[str]:
        """Name the given options that have no effect on the method.

        others: whether options of the command itself are given. Every method can compute in fp32.
        """
        default = vars(TrainOptions())
        chosen = {name: value != default[name] for name, value in vars(self).items()} | others
        chosen["precision"] &= self.precision != "fp32"
        return [name for name, given in chosen.items() if given and not self.row.uses(name)]

    def require_used(self, **others: bool) -> None:
        """Raise UserError for the first of `unused`."""
        for name in self.unused(**others):
            raise UserError(
                f"{option_name(name)}: not used by --method {self.method}; leave it out"
            )

"""Options of `synth train`, and the configuration that follows from them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from synth.base.command import progress_bar
from synth.base.errors import UserError
from synth.base.options import (
    OF_PRESET,
    Precision,
    PresetFloat,
    PresetInt,
    PresetSize,
    Tracker,
    require_not_negative,
    require_positive,
    require_size,
)
from synth.data.catalog import Category, choose_categories, open_category
from synth.data.options import DataOptions
from synth.diffusion.config import PRESETS, RunConfig, TrainConfig, UNetConfig
from synth.diffusion.prediction import PredictionKind

PresetKind = Annotated[
    PredictionKind | None,
    tyro.conf.arg(metavar="{epsilon,v,edm,wiener}", help_behavior_hint=OF_PRESET),
]


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions:
    """How to train."""

    preset: Literal["tiny", "small", "base", "adm"] = "tiny"
    """tiny: 64 px, minutes on a CPU; small: 128 px, hours on a CPU; base: 256 px, 114 million
    parameters, the public DDPM network; adm: 256 px, 553 million, RealNet's. The last two need a
    GPU."""
    init_from: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="FOLDER|HUB ID|ADM .pt", help_behavior_hint="(default: from scratch)"
        ),
    ] = None
    """Weights to start from, such as google/ddpm-cat-256. The network then has the source's shape,
    whatever the preset's; size and training are the preset's. What does not fit is listed."""
    conditional: bool = False
    """One model for several categories, told which to draw; they take turns in training."""
    categories: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME...", help_behavior_hint="(default: all)")
    ] = ()
    """Categories of a --conditional model."""
    prediction: PresetKind = None
    """What the network predicts: wiener starts from the mean and the spectrum of the training
    images, and keeps grain out of samples and strong anomalies best; edm starts from their standard
    deviation, v from neither; epsilon is the original DDPM's, and that of most weights to start
    from."""
    size: PresetSize = None
    """Pixels that images are squeezed to."""
    num_steps: PresetInt = None
    """Optimiser steps; a finished model trains on when this is raised."""
    minutes: Annotated[
        float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: --num-steps)")
    ] = None
    """Train for about so long: the number of steps follows from the speed at the start, and is
    printed. The check of the samples takes further time."""
    batch_size: PresetInt = None
    """Images per step over all processes."""
    learning_rate: PresetFloat = None
    """Of Adam."""
    flip_horizontal: bool = False
    """Mirror training images left to right half of the time."""
    flip_vertical: bool = False
    """Mirror training images top to bottom half of the time."""
    rotate: bool = False
    """Turn training images by 0, 90, 180 or 270 degrees; only for square sizes."""
    precision: Precision = "auto"
    """Arithmetic; auto is bf16 where the hardware has instructions for it."""
    seed: int = 0
    """Of weights, batches and noise."""
    accumulate: int = 1
    """Parts that a batch is computed in; more need less memory, the result is the same."""
    gradient_checkpointing: bool = False
    """Save memory, compute parts of the network twice; the result is the same."""
    sample_every: Annotated[
        int | None, tyro.conf.arg(metavar="STEPS", help_behavior_hint="(default: at the end only)")
    ] = None
    """Write samples/step_N.png, samples at strength 0, 0.1, 0.2 and 0.5, at this interval."""
    keep_checkpoints: int = 0
    """How many past models, one each --sample-every, to keep in checkpoints/step_N."""
    tracker: Tracker = "none"
    """Where losses are logged besides trace.jsonl; tensorboard shows them with
    `tensorboard --logdir OUT`."""

    def require_in_range(self) -> None:
        """Raise UserError for values out of range; nothing is loaded or downloaded for this."""
        chosen = (self.num_steps, self.batch_size, self.learning_rate)
        names = ("num_steps", "batch_size", "learning_rate")
        require_positive(**dict(zip(names, chosen, strict=True)))
        require_positive(minutes=self.minutes)
        if self.minutes is not None and self.num_steps is not None:
            raise UserError(
                f"--minutes: got {self.minutes:g} and --num-steps {self.num_steps}; give one"
            )
        require_positive(accumulate=self.accumulate, sample_every=self.sample_every)
        require_not_negative(seed=self.seed, keep_checkpoints=self.keep_checkpoints)
        require_size(self.size)
        self.run_config()

    def config(self, unet: UNetConfig | None = None) -> TrainConfig:
        """The preset with what was chosen besides; `unet` takes the place of its network.

        Raises UserError for values out of range.
        """
        self.require_in_range()
        preset = PRESETS[self.preset]
        chosen: dict[str, Any] = {
            "num_steps": self.num_steps,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
        }
        network = unet or preset.unet
        if unet is not None and self.prediction not in (None, unet.prediction):
            raise UserError(
                f"--prediction: got {self.prediction}, but the weights of --init-from predict "
                f"{unet.prediction}; leave --prediction out"
            )
        network = replace(
            network,
            image_size=self.size or preset.unet.image_size,
            prediction=self.prediction or network.prediction,
        )
        return replace(
            preset,
            unet=network,
            timestep_power=1.0 if network.prediction == "epsilon" else preset.timestep_power,
            flip_horizontal=self.flip_horizontal,
            flip_vertical=self.flip_vertical,
            rotate=self.rotate,
            precision=self.precision,
            seed=self.seed,
            **{name: value for name, value in chosen.items() if value is not None},
        )

    def run_config(self) -> RunConfig:
        """How the training is computed and watched. Raises UserError for values out of range."""
        return RunConfig(
            accumulate=self.accumulate,
            gradient_checkpointing=self.gradient_checkpointing,
            sample_every=self.sample_every,
            keep_checkpoints=self.keep_checkpoints,
            tracker=self.tracker,
        )

    def open(self, data: DataOptions, out: Path) -> list[Category]:
        """List the images of the category, or of all that a conditional model in `out` is for.

        Raises UserError as `open_category`, and for choices that contradict each other.
        """
        if not self.conditional:
            if self.categories:
                raise UserError(
                    "--categories: one model for several categories is made with --conditional; "
                    "give that too, or a single --category"
                )
            return [data.open(out)]
        if data.category is not None:
            raise UserError(
                f"--category: got {data.category}, but --conditional trains over several; "
                "choose them with --categories, or leave both out for all"
            )
        names = choose_categories(data.dataset, data.root, self.categories)
        if len(names) < 2:
            raise UserError(
                f"--conditional: got the categories {', '.join(names) or 'none'}; needs two or "
                "more, each once: name others, or leave --conditional out"
            )
        return [open_category(data.dataset, data.root, name, progress_bar, out) for name in names]

"""Options of `synth train`, and the configuration that follows from them."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from synth.command import (
    PresetFloat,
    PresetInt,
    PresetSize,
    require_not_negative,
    require_positive,
    require_size,
)
from synth.config import PRESETS, Precision, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train."""

    preset: Literal["tiny", "small"] = "tiny"
    """tiny: 64 px, minutes on a CPU; small: 128 px, hours on a CPU."""
    size: PresetSize = None
    """Pixels that images are squeezed to."""
    num_steps: PresetInt = None
    """Optimiser steps; a finished model trains on when this is raised."""
    batch_size: PresetInt = None
    """Images per step over all processes."""
    learning_rate: PresetFloat = None
    """Of Adam."""
    flip_horizontal: bool = False
    """Mirror training images left to right half of the time."""
    flip_vertical: bool = False
    """Mirror training images top to bottom half of the time."""
    precision: Precision = "auto"
    """Arithmetic; auto takes the faster on this device."""
    seed: int = 0
    """Of weights, batches and noise."""

    def config(self) -> TrainConfig:
        """The preset with what was chosen besides. Raises UserError for values out of range."""
        chosen: dict[str, Any] = {
            "num_steps": self.num_steps,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
        }
        require_positive(**chosen)
        require_not_negative(seed=self.seed)
        require_size(self.size)
        config = replace(
            PRESETS[self.preset],
            flip_horizontal=self.flip_horizontal,
            flip_vertical=self.flip_vertical,
            precision=self.precision,
            seed=self.seed,
            **{name: value for name, value in chosen.items() if value is not None},
        )
        return config if self.size is None else config.with_size(self.size)

"""Looks at a model in training: sheets of samples, and past averaged weights as models."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_2d import UNet2DModel

from synth.base.files import write_json
from synth.base.progress import no_bars
from synth.diffusion.model import CONFIG_FILE, DiffusionModel, save_model
from synth.images import write_png
from synth.pictures import contact_sheet
from synth.quality.sheets import STRENGTHS, strength_rows

SHEETS, CHECKPOINTS = "samples", "checkpoints"
NUM_SHEET_IMAGES = 8


class Looks:
    """Writes `out`/samples/step_N.png at s = 0, 0.1, 0.2, 0.5, and keeps the newest models.

    config: the model's config.json. keep: how many folders `out`/checkpoints/step_N there may be;
    each is a model like `out` itself.
    """

    def __init__(self, config: Mapping[str, Any], out: Path, keep: int = 0) -> None:
        self.config, self.out, self.keep = dict(config), out, keep

    def __call__(self, done: int, unet: UNet2DModel) -> None:
        """Look at the network after `done` steps. Raises UserError when the disk is full."""
        model = DiffusionModel(unet, self.config, digest="")
        rows = [
            row if category is None else row._replace(label=f"{category}: {row.label}")
            for category in (model.categories if model.conditional else [None])
            for row in strength_rows(model, NUM_SHEET_IMAGES, 0, no_bars, STRENGTHS, category)
        ]
        name = f"step_{done:06d}"
        write_png(self.out / SHEETS / f"{name}.png", contact_sheet(rows))
        if self.keep:
            folder = self.out / CHECKPOINTS / name
            write_json(folder / CONFIG_FILE, {**self.config, "step": done})
            save_model(folder, unet, model.prediction.kind)
            for old in sorted((self.out / CHECKPOINTS).glob("step_*"))[: -self.keep]:
                shutil.rmtree(old)

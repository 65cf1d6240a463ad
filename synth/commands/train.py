"""`synth train`."""

from synth.command import (
    DataOptions,
    Folder,
    progress_bar,
    require_output,
    say,
)
from synth.options import TrainOptions


def train(data: DataOptions, training: TrainOptions, *, out: Folder) -> None:
    """Train a diffusion model on one category's normal images.

    The same command goes on after an interruption. A tenth of the images is held out and judges
    the samples at strength 0 at the end: under-fit, fit, or copies.

    Args:
        data: Which images.
        training: How to train.
        out: The model: a diffusers pipeline, the loss trace, a sample sheet, the check.

    """
    config = training.config()
    category = data.open()
    require_output(out)
    from synth.diffusion_run import SHEET_FILE, train_model

    check = train_model(category, config, out, progress_bar)
    if check is not None:
        say(check.sentence)
        say(f"samples to look at: {out / SHEET_FILE}\nmodel: {out}")

"""`synth train`."""

from synth.base.command import progress_bar, say
from synth.base.options import Folder, require_output
from synth.data.options import DataOptions
from synth.diffusion.options import DiffusionOptions


def train(data: DataOptions, training: DiffusionOptions, *, out: Folder) -> None:
    """Train a diffusion model on the normal images of one category, or of several.

    The same command goes on after an interruption. A tenth of the images is held out and judges
    the samples at strength 0 at the end: under-fit, fit, or copies.

    Args:
        data: Which images.
        training: How to train.
        out: The model: the network in diffusers' format, the loss trace, a sample sheet, the check.

    """
    training.require_in_range()
    config = None if training.init_from else training.config()
    chosen = training.open(data, out)
    require_output(out)
    from synth.diffusion.init_from import load_source
    from synth.making.train import sheet_path, train_model

    source = load_source(training.init_from) if training.init_from else None
    config = config or training.config(source and source.unet)
    checks = train_model(
        chosen,
        config,
        out,
        progress_bar,
        run=training.run_config(),
        minutes=training.minutes,
        source=source,
        tell=say,
    )
    if checks is not None:
        for name, check in checks.items():
            say(f"{name}: {check.sentence}" if training.conditional else check.sentence)
        sheets = [sheet_path(out, name if training.conditional else None) for name in checks]
        say(f"samples to look at: {', '.join(map(str, sheets))}\nmodel: {out}")

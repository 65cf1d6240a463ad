"""`synth inspect`."""

from pathlib import Path
from typing import Annotated

import tyro

from synth.command import (
    DataOptions,
    OptionalFolder,
    progress_bar,
    require_not_negative,
    require_output,
    require_positive,
    say,
)
from synth.errors import UserError

PngFile = Annotated[Path, tyro.conf.arg(metavar="FILE.png")]


def inspect(
    data: DataOptions,
    *,
    model: OptionalFolder = None,
    blended: OptionalFolder = None,
    out: PngFile,
    num: int = 8,
    seed: int = 0,
) -> None:
    """Make one contact sheet to look at.

    Normal images and their foreground, samples at rising strength, blended images and masks.

    Args:
        data: Which normal images.
        model: What `synth train` made: adds rows of samples.
        blended: What `synth blend` made: adds blended images and their masks.
        out: The sheet.
        num: Images in a row.
        seed: Of the samples; the same noise is used at every strength.

    """
    require_positive(num=num)
    require_not_negative(seed=seed)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UserError(f"--out: got {out}, must be a file that ends in .png")
    category = data.open()
    require_output(out.parent)
    from synth.images import write_png
    from synth.pictures import contact_sheet
    from synth.sheets import blended_rows, normal_rows, strength_rows
    from synth.sia import open_sia

    folder = None if blended is None else open_sia(blended, kind="blended")
    rows = normal_rows(category, num, (256, 256), progress_bar)
    if model is not None:
        from synth.device import make_accelerator
        from synth.model import load_model

        diffusion = load_model(model, make_accelerator("fp32").device)
        rows += strength_rows(diffusion, num, seed, progress_bar)
    if folder is not None:
        rows += blended_rows(folder, num)
    write_png(out, contact_sheet(rows))
    say(f"contact sheet: {out}")

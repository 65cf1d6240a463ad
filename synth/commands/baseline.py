"""`synth baseline`."""

from typing import Literal

from synth.base.command import progress_bar, say
from synth.base.options import (
    Folder,
    Size,
    require_not_negative,
    require_output,
    require_positive,
    require_size,
)
from synth.data.options import DataOptions


def baseline(
    data: DataOptions,
    *,
    method: Literal["noise", "shifted", "cutpaste"],
    out: Folder,
    num: int = 200,
    size: Size = (256, 256),
    seed: int = 0,
) -> None:
    """Make simple anomaly images without any model, to see what synthesised ones are worth.

    What is already there stays, and a larger --num goes on from it.

    Args:
        data: Which normal images.
        method: noise; shifted: normal images moved and recoloured, to cut Perlin patches from;
            cutpaste: rectangles pasted into normal images, and their masks. `detect train --sia`
            takes the first two.
        out: The images go to OUT/<dataset>/<category>.
        num: How many images there shall be.
        size: Pixels.
        seed: Of every image, together with its index.

    """
    require_positive(num=num)
    require_not_negative(seed=seed)
    require_size(size)
    category = data.open(out)
    require_output(out)
    from synth.data.baselines import write_baseline
    from synth.data.normals import load_normals

    normals = load_normals(category, size, progress_bar)
    with progress_bar("drawing", "image") as update:
        written = write_baseline(normals, method, out, num, seed=seed, on_image=update)
    say(written.sentence("SIA folder"))

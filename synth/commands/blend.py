"""`synth blend`."""

from synth.command import (
    DataOptions,
    Folder,
    Size,
    progress_bar,
    require_not_negative,
    require_output,
    require_positive,
    require_size,
    say,
    warn,
)
from synth.config import Foreground


def blend(
    data: DataOptions,
    *,
    sia: Folder,
    out: Folder,
    num: int = 200,
    size: Size = (256, 256),
    foreground: Foreground = "auto",
    seed: int = 0,
) -> None:
    """Paste SDAS images into normal ones under Perlin masks; images and masks to disk.

    `detect train` does the same on the fly; this is for looking, and for other toolkits.

    Args:
        data: Which normal images.
        sia: What `synth generate` made.
        out: The images go to OUT/<dataset>/<category>.
        num: How many images there shall be.
        size: Pixels.
        foreground: Where anomalies may lie: auto finds the product, everything is the whole image.
        seed: Of every image, together with its index.

    """
    require_positive(num=num)
    require_not_negative(seed=seed)
    require_size(size)
    category = data.open()
    require_output(out)
    from synth.generate import blend_sia
    from synth.normals import load_normals
    from synth.sia import open_sia

    sources = open_sia(sia, kind="source")
    if sources.category != category.name:
        warn(f"{sia} is of category {sources.category}, the normal images of {category.name}")
    normals = load_normals(category, size, progress_bar)
    rule = normals.foreground_rule(foreground)
    with progress_bar("blending", "image") as update:
        folder = blend_sia(normals, rule, sources, out, num, seed=seed, on_image=update)
    say(f"foreground rule: {rule.method}\nblended images and masks: {folder}")

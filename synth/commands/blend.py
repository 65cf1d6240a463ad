"""`synth blend`."""

from synth.base.command import progress_bar, say, warn
from synth.base.options import (
    Folder,
    ShardOption,
    Size,
    parse_shard,
    require_not_negative,
    require_output,
    require_positive,
    require_size,
)
from synth.data.options import DataOptions, Foreground


def blend(
    data: DataOptions,
    *,
    sia: Folder,
    out: Folder,
    num: int = 200,
    size: Size = (256, 256),
    foreground: Foreground = "auto",
    seed: int = 0,
    shard: ShardOption = None,
) -> None:
    """Paste SDAS images into normal ones under Perlin masks; images and masks to disk.

    For looking, and for other toolkits: `detect train` does the same on the fly.

    Args:
        data: Which normal images.
        sia: What `synth generate`, `baseline` or `import-textures` made; images without masks.
        out: The images go to OUT/<dataset>/<category>.
        num: How many images there shall be.
        size: Pixels.
        foreground: Where anomalies may lie: auto finds the product, everything is the whole image.
        seed: Of every image, together with its index.
        shard: Make share I of N, counted from 1: for job arrays.

    """
    require_positive(num=num)
    require_not_negative(seed=seed)
    require_size(size)
    share, num_shares = parse_shard(shard)
    category = data.open(out)
    require_output(out)
    from synth.data.normals import load_normals
    from synth.making.blend import blend_sia
    from synth.sia.reader import open_sia

    sources = open_sia(sia, kind="source")
    if sources.product not in (None, category.name):
        warn(
            f"{sia} is of category {sources.category}, the normal images of {category.name}: its "
            "images are blended into them anyway"
        )
    normals = load_normals(category, size, progress_bar)
    rule = normals.foreground_rule(foreground)
    with progress_bar("blending", "image") as update:
        written = blend_sia(
            normals,
            rule,
            sources,
            out,
            num,
            seed=seed,
            process=share,
            num_processes=num_shares,
            on_image=update,
        )
    say(f"foreground rule: {rule.method}\n{written.sentence('blended images and masks')}")

"""`synth import-textures`."""

from pathlib import Path
from typing import Annotated

import tyro

from synth.base.command import progress_bar, say
from synth.base.options import Folder, Size, require_output, require_size


def import_textures(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    *,
    out: Folder,
    size: Size = (256, 256),
) -> None:
    """Take textures as anomaly images: DTD, or any folder of images.

    The result goes to `detect train --sia`, so that textures can be compared with synthesised
    images.

    Args:
        folder: Images, in folders of any depth.
        out: The images go to OUT/imported-textures/<name of the folder>.
        size: Pixels that images are squeezed to.

    """
    require_size(size)
    from synth.data import baselines
    from synth.images import require_images

    paths = baselines.texture_files(folder)
    require_output(out)
    with progress_bar("checking images", "image") as update:
        require_images(paths, update)
    with progress_bar("writing images", "image") as update:
        written = baselines.import_textures(folder, out, size, on_image=update)
    say(written.sentence("SIA folder"))

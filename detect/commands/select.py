"""`detect select`."""

from dataclasses import dataclass

from detect.options import BackboneOptions, MethodOptions, PresetOptions, Sources, TrainOptions
from synth.base.command import progress_bar, say, warn
from synth.base.errors import UserError
from synth.base.options import Folder, OptionalFolder, require_output
from synth.data.options import DataOptions


@dataclass(frozen=True, kw_only=True)
class ChannelOptions(PresetOptions, MethodOptions):
    """Which channels."""


def select(
    data: DataOptions,
    channels: ChannelOptions,
    more: BackboneOptions,
    *,
    out: Folder,
    source: Sources = (),
    sia: OptionalFolder = None,
    textures: OptionalFolder = None,
    defects: OptionalFolder = None,
) -> None:
    """Show which channels AFS keeps for a RealNet, and how well they tell anomalies apart.

    Writes channels.csv with the score of every channel, and channels.png with the scores and what
    the best, the last kept and the worst channel of each layer show of an example. A score is the
    mean squared misfit between a channel's residual and the mask: lower is better. The scores are
    kept: `detect train` on the same images does not compute them again.

    Args:
        data: Which normal images.
        channels: Which channels.
        more: Rarely needed.
        out: The table and the picture.
        source: What anomalies are made of, as in `detect train`.
        sia: The anomaly images that `synth generate` made.
        textures: Photographs of textures, such as DTD's, in a folder that is searched through.
        defects: A few photographs of real defects with their masks: images/x.png and masks/x.png,
            or <type>/x.png and ground_truth/<type>/x.png. None may be a test image.

    """
    options = TrainOptions.of(channels, more)
    options.check()
    config = options.row.recipe().configure(options)
    from detect.methods.realnet.config import RealNetConfig

    if not isinstance(config, RealNetConfig):
        raise UserError(f"--method: got {options.method}; realnet and realnet-nn choose channels")
    category = data.open(out)
    require_output(out)
    from detect.data.material import Product
    from detect.data.source_words import chosen_sources
    from detect.report.channels import show_channels
    from synth.data.normals import load_normals

    folders = {"sia": sia, "textures": textures, "defects": defects}
    (anomalies,) = chosen_sources(options.row, source, folders, [category], warn, progress_bar)
    product = Product(load_normals(category, config.image_size, progress_bar), anomalies)
    for line in show_channels(product, options, out, progress_bar):
        say(line)
    say(f"table: {out / 'channels.csv'}\npicture: {out / 'channels.png'}")

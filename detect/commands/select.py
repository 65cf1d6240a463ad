"""`detect select`."""

from dataclasses import fields

from detect.options import ChannelOptions, Sources, TrainOptions
from synth.base.command import progress_bar, say, warn
from synth.base.options import Folder, OptionalFolder, require_output
from synth.data.options import DataOptions


def select(
    data: DataOptions,
    channels: ChannelOptions,
    *,
    out: Folder,
    source: Sources = ("sia",),
    sia: OptionalFolder = None,
    textures: OptionalFolder = None,
) -> None:
    """Show which channels AFS keeps and how well they tell anomalies apart.

    Writes channels.csv with the score of every channel, and channels.png with the scores and what
    the best, the last kept and the worst channel of each layer show of an example. A score is the
    mean squared misfit between a channel's residual and the mask: lower is better. The scores are
    kept: `detect train` on the same images does not compute them again.

    Args:
        data: Which normal images.
        channels: Which channels.
        out: The table and the picture.
        source: What anomalies are made of, as in `detect train`.
        sia: What `synth generate` made: the anomaly images.
        textures: Photographs of textures, such as DTD's; searched through.

    """
    training = TrainOptions(**{f.name: getattr(channels, f.name) for f in fields(channels)})
    training.check()
    category = data.open(out)
    require_output(out)
    from detect.methods.realnet.channels import (
        by_layer,
        empty_score,
        example_of,
        residuals,
        write_picture,
        write_table,
    )
    from detect.methods.realnet.run import choose_channels, realnet_config
    from detect.training.source_words import parse_parts
    from detect.training.sources import open_source
    from synth.data.normals import load_normals

    parts = parse_parts(source, {"sia": sia, "textures": textures})
    anomalies = open_source(parts, category)
    for other in anomalies.other_categories(category.name):
        warn(
            f"{sia} is of category {other}, the normal images of {category.name}: channels are "
            "chosen on its images all the same"
        )
    normals = load_normals(category, realnet_config(training).image_size, progress_bar)
    choice = choose_channels(normals, anomalies, training, progress_bar)
    layers = by_layer(choice.config.backbone.numbers, choice.afs)
    write_table(out / "channels.csv", layers)
    sample = example_of(choice.blended)
    maps = residuals(choice.backbone, sample, choice.device)
    config = choice.config
    empty = empty_score(choice.blended, config.num_afs_batches * config.batch_size)
    write_picture(out / "channels.png", layers, empty, sample, maps)
    for layer in layers:
        say(layer.sentence)
    say(f"a channel that shows nothing would score {empty:.4f}")
    say(f"table: {out / 'channels.csv'}\npicture: {out / 'channels.png'}")

"""`detect train`."""

from detect.options import Sources, TrainOptions
from synth.command import (
    DataOptions,
    Folder,
    OptionalFolder,
    progress_bar,
    require_output,
    say,
    warn,
)


def train(
    data: DataOptions,
    training: TrainOptions,
    *,
    out: Folder,
    source: Sources = ("sia",),
    sia: OptionalFolder = None,
    textures: OptionalFolder = None,
) -> None:
    """Train a detector on normal images and anomalies blended into them.

    The same command goes on after an interruption. The averaged weights of the last step are the
    model. A tenth of the normal images is held out and sets the threshold.

    Args:
        data: Which normal images.
        training: How to train.
        out: The detector.
        source: What anomalies are made of: sia, textures, noise, cutpaste; or several by weight,
            such as sia=0.7 textures=0.3.
        sia: What `synth generate` made: the anomaly images.
        textures: Photographs of textures, such as DTD's; searched through.

    """
    training.check()
    category = data.open()
    require_output(out)
    from detect.realnet.run import realnet_config, train_realnet
    from detect.training.source_words import parse_parts
    from detect.training.sources import open_source
    from synth.data.normals import load_normals

    parts = parse_parts(source, {"sia": sia, "textures": textures})
    anomalies = open_source(parts, category)
    for other in anomalies.other_categories(category.name):
        warn(f"{sia} is of category {other}, the normal images of {category.name}")
    normals = load_normals(category, realnet_config(training).image_size, progress_bar)
    calibration = train_realnet(normals, anomalies, training, out, progress_bar, say)
    if calibration is None:
        return
    if calibration.note:
        warn(calibration.note)
    num_held_out = len(calibration.scores)
    say(f"threshold {calibration.threshold:.4g} from {num_held_out} held-out normal images")
    say(f"detector: {out}")

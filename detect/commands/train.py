"""`detect train`."""

from typing import Literal

from detect.options import TrainOptions
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
    sia: OptionalFolder = None,
    source: Literal["sia", "noise"] = "sia",
) -> None:
    """Train a detector on normal images and anomalies blended into them.

    The same command goes on after an interruption. The averaged weights of the last step are the
    model. A tenth of the normal images is held out and sets the threshold.

    Args:
        data: Which normal images.
        training: How to train.
        out: The detector.
        sia: What `synth generate` made: the anomaly images.
        source: sia, or noise in its place, to see what the anomaly images are worth.

    """
    training.check()
    category = data.open()
    require_output(out)
    from detect.realnet.run import train_realnet
    from detect.training.sources import open_source

    anomalies = open_source(source, sia, progress_bar)
    if anomalies.category not in (None, category.name):
        warn(f"{sia} is of category {anomalies.category}, the normal images of {category.name}")
    calibration = train_realnet(category, anomalies, training, out, progress_bar)
    if calibration is None:
        return
    if calibration.note:
        warn(calibration.note)
    num_held_out = len(calibration.scores)
    say(f"threshold {calibration.threshold:.4g} from {num_held_out} held-out normal images")
    say(f"detector: {out}")

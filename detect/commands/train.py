"""`detect train`."""

from detect.options import Sources, TrainOptions
from synth.base.command import progress_bar, say, warn
from synth.base.options import Folder, OptionalFolder, Tracker, require_output
from synth.data.options import DataOptions


def train(
    data: DataOptions,
    training: TrainOptions,
    *,
    out: Folder,
    source: Sources = ("sia",),
    sia: OptionalFolder = None,
    textures: OptionalFolder = None,
    multi_class: bool = False,
    watch_test: bool = False,
    tracker: Tracker = "none",
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
        multi_class: One detector for all categories below the root. Each has its own foreground
            and anomaly images (--sia holds <dataset>/<category>), and a threshold beside that of
            all together.
        watch_test: Also measure the test images twenty times on the way, for comparison with papers
            that report the best of these. Chooses nothing; takes a while with large images.
        tracker: Where losses are logged besides realnet/trace.jsonl; tensorboard shows them with
            `tensorboard --logdir OUT`.

    """
    training.check()
    categories = data.open_all(out) if multi_class else [data.open(out)]
    from detect.evaluation.testset import open_test_set, require_both_labels

    for category in categories if watch_test else ():
        require_both_labels(category)
    require_output(out)
    from detect.methods.realnet.run import Product, realnet_config, train_realnet
    from detect.training.source_words import parse_parts
    from detect.training.sources import open_sources
    from synth.data.normals import load_normals

    parts = parse_parts(source, {"sia": sia, "textures": textures})
    sources = open_sources(parts, categories)
    for category, anomalies in zip(categories, sources, strict=True):
        for other in anomalies.other_categories(category.name):
            warn(
                f"{sia} is of category {other}, the normal images of {category.name}: its images "
                "are blended into them all the same; unless that is meant, give others with --sia"
            )
    size = realnet_config(training).image_size
    normals = [load_normals(category, size, progress_bar) for category in categories]
    tests = [open_test_set(category, progress_bar) for category in categories] if watch_test else ()
    products = [Product(*pair) for pair in zip(normals, sources, strict=True)]
    calibration = train_realnet(products, training, out, progress_bar, say, tests, tracker)
    if calibration is None:
        return
    if calibration.note:
        warn(calibration.note)
    num_held_out = len(calibration.scores)
    say(f"threshold {calibration.threshold:.4g} from {num_held_out} held-out normal images")
    say(f"detector: {out}")

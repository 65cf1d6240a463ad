"""`detect train`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from detect.options import BasicOptions, MoreOptions, Sources, TrainOptions
from synth.base.command import progress_bar, say, warn
from synth.base.options import Folder, OptionalFolder, Tracker, require_output
from synth.data.options import DataOptions

if TYPE_CHECKING:
    from detect.calibration import Calibration


@dataclass(frozen=True, kw_only=True)
class RareOptions(MoreOptions):
    """Rarely needed."""

    multi_class: bool = False
    """Train one detector for all categories below the root. Each has its own foreground, its own
    anomaly images (--sia holds <dataset>/<category>), and a threshold besides the common one."""
    watch_test: bool = False
    """Measure the test images too, twenty times along the way, for comparison with papers that
    report the best of these. Chooses nothing; takes a while with large images."""
    tracker: Tracker = "none"
    """Where losses are logged besides trace.jsonl; `tensorboard --logdir OUT` shows those of
    tensorboard."""


def train(
    data: DataOptions,
    training: BasicOptions,
    more: RareOptions,
    *,
    out: Folder,
    source: Sources = (),
    sia: OptionalFolder = None,
    textures: OptionalFolder = None,
    defects: OptionalFolder = None,
) -> None:
    """Train a detector on normal images and, for most methods, anomalies blended into them.

    A tenth of the normal images is held out and sets the threshold. Run the same command again to
    continue after an interruption.

    Args:
        data: Which normal images.
        training: How to train.
        more: Rarely needed.
        out: The detector.
        source: What anomalies are made of: sia, textures, noise, cutpaste, defects; or several by
            weight, such as sia=0.7 textures=0.3.
        sia: The anomaly images that `synth generate` made.
        textures: Photographs of textures, such as DTD's, in a folder that is searched through.
        defects: A few photographs of real defects with their masks: images/x.png and masks/x.png,
            or <type>/x.png and ground_truth/<type>/x.png. None may be a test image.

    """
    options = TrainOptions.of(training, more)
    options.check()
    options.require_used(
        source=bool(source),
        sia=sia is not None,
        textures=textures is not None,
        defects=defects is not None,
        watch_test=more.watch_test,
        tracker=more.tracker != "none",
    )
    categories = data.open_all(out) if more.multi_class else [data.open(out)]
    from detect.evaluation.testset import open_test_set, require_both_labels

    for category in categories if more.watch_test else ():
        require_both_labels(category)
    require_output(out)
    from detect.checkpoint import WEIGHTS_FILE
    from detect.data.material import Product
    from detect.data.source_words import chosen_sources
    from detect.training.run import train_detector
    from synth.data.normals import load_normals

    size = options.row.recipe().configure(options).image_size
    folders = {"sia": sia, "textures": textures, "defects": defects}
    sources = chosen_sources(options.row, source, folders, categories, warn, progress_bar)
    normals = [load_normals(category, size, progress_bar) for category in categories]
    tests = [open_test_set(each, progress_bar) for each in categories if more.watch_test]
    products = [Product(*pair) for pair in zip(normals, sources, strict=True)]
    calibration = train_detector(products, options, out, progress_bar, say, tests, more.tracker)
    if calibration is not None:
        tell(calibration)
        say(f"detector: {out} ({(out / WEIGHTS_FILE).stat().st_size / 2**20:.1f} MiB)")


def tell(calibration: "Calibration") -> None:
    """Print the threshold, and what it cannot promise."""
    if calibration.note:
        warn(calibration.note)
    num_held_out = len(calibration.scores)
    say(f"threshold {calibration.threshold:.4g} from {num_held_out} held-out normal images")

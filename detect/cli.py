"""The `detect` command: train, evaluate, predict."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from detect.options import TrainOptions
from synth.command import (
    DataOptions,
    Folder,
    OptionalFolder,
    progress_bar,
    require_output,
    require_positive,
    run_command,
    say,
    warn,
)

Paths = Annotated[
    tuple[Path, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint=""),
]
Folders = Annotated[
    tuple[Path, ...],
    tyro.conf.arg(metavar="[FOLDER ...]", help_behavior_hint="(optional)"),
]


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
    from detect.sources import open_source

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


def evaluate(
    data: DataOptions,
    *,
    model: Folder,
    out: Folder,
    compare: Folders = (),
    batch_size: int = 16,
) -> None:
    """Measure a detector on the test images.

    Writes report.html, results.json, scores.csv and scores.npz. Maps are compared with the masks
    at the masks' own resolution.

    Args:
        data: Which images; their test split needs normal and anomalous ones.
        model: What `detect train` made.
        out: The results.
        compare: Further detectors, shown beside it in the report.
        batch_size: Images scored at once; changes speed and memory only.

    """
    require_positive(batch_size=batch_size)
    category = data.open()
    require_output(out)
    from detect.checkpoint import load_detector
    from detect.comparison import compare_baseline, compare_detector, score_test_set
    from detect.evaluation import comparison, open_test_set
    from detect.evaluation import evaluate as measure
    from detect.protocol import detector_name, protocol, table
    from detect.report import write_report
    from detect.report_text import findings
    from detect.results import make_report, write_results
    from synth.device import make_accelerator

    device = make_accelerator("fp32").device
    trained = load_detector(model, device)
    others = [(folder, load_detector(folder, device)) for folder in compare]
    for folder, detector in [(model, trained), *others]:
        if detector.config["category"] != category.name:
            made_for = detector.config["category"]
            warn(f"{folder} is of category {made_for}, the test images of {category.name}")
    test = open_test_set(category, progress_bar)
    if test.masks is None:
        warn("not every anomalous test image has a mask: figures are of whole images only")

    scored = score_test_set(trained, test, device, batch_size, progress_bar)
    evaluation = measure(test, scored)
    rows = [compare_detector(*other, test, device, batch_size, progress_bar) for other in others]
    rows.append(compare_baseline(test, trained.image_size, progress_bar))
    name, facts = detector_name(trained), protocol(trained, category)
    report = make_report(test, name, evaluation, scored, trained.calibration, rows, facts)
    write_results(out, report, test, scored)
    write_report(out / "report.html", report)
    for sentence in findings(report):
        say(sentence)
    say(table([comparison(name, evaluation), *rows]))
    say(f"report: {out / 'report.html'}")


def predict(images: Paths, *, model: Folder, out: Folder, batch_size: int = 16) -> None:
    """Score images: scores.csv with a verdict each, and an overlay picture each.

    Args:
        images: Image files, or folders that are searched for them.
        model: What `detect train` made.
        out: scores.csv and overlays/.
        batch_size: Images scored at once; changes speed and memory only.

    """
    require_positive(batch_size=batch_size)
    from detect.checkpoint import load_detector
    from detect.prediction import find_images, write_overlays
    from detect.results import write_scores
    from detect.scoring import detector_scorer, score_files
    from synth.device import make_accelerator
    from synth.images import require_images

    paths = find_images(images)
    require_output(out)
    device = make_accelerator("fp32").device
    trained = load_detector(model, device)
    with progress_bar("checking images", "image") as update:
        require_images(paths, update)
    scorer = detector_scorer(trained.detector, device)
    with progress_bar("scoring", "image") as update:
        scored = score_files(
            scorer, paths, trained.image_size, batch_size=batch_size, progress=update
        )
    rows = [(path, "", float(score)) for path, score in zip(paths, scored.scores, strict=True)]
    write_scores(out / "scores.csv", rows, trained.calibration)
    write_overlays(out / "overlays", paths, scored, trained.calibration.threshold, progress_bar)
    rejected = sum(trained.calibration.rejects(score) for _, _, score in rows)
    threshold = trained.calibration.threshold
    say(f"{rejected} of {len(paths)} images are anomalous (score above {threshold:.4g})")
    say(f"overlays: {out / 'overlays'}\nscores: {out / 'scores.csv'}")


def main() -> None:
    """Run the `detect` command line."""
    commands = {"train": train, "evaluate": evaluate, "predict": predict}
    sys.exit(run_command("detect", "Train anomaly detectors, measure and use them.", commands))

"""`detect evaluate`."""

from pathlib import Path
from typing import Annotated

import tyro

from synth.command import (
    DataOptions,
    Folder,
    progress_bar,
    require_output,
    require_positive,
    say,
    warn,
)

Folders = Annotated[
    tuple[Path, ...],
    tyro.conf.arg(metavar="[FOLDER ...]", help_behavior_hint="(optional)"),
]


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

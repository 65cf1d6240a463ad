"""`detect evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from detect.commands.shared import BatchSize, Rate, require_share
from synth.base.command import progress_bar, say, warn
from synth.base.errors import UserError
from synth.base.options import Folder, require_output, require_positive
from synth.data.catalog import Category
from synth.data.options import DataOptions

if TYPE_CHECKING:
    from detect.evaluation.report_data import ReportData

Models = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDER [FOLDER ...]")]
OtherModels = Annotated[
    tuple[Path, ...],
    tyro.conf.arg(metavar="[FOLDER ...]", help_behavior_hint="(optional)"),
]


def evaluate(
    data: DataOptions,
    *,
    model: Models,
    out: Folder,
    compare: OtherModels = (),
    false_reject_rate: Rate = None,
    batch_size: BatchSize = None,
    multi_class: bool = False,
) -> None:
    """Measure a detector on the test images.

    Writes report.html, results.json, scores.csv and scores.npz. Maps are compared with the masks
    at the masks' own resolution. Memory does not grow with the number of images; while it works,
    the disk of --out holds about 4 bytes per pixel.

    Args:
        data: Which images; their test split needs normal and anomalous ones.
        model: What `detect train` made; several trainings with different seeds are averaged (mean,
            standard deviation), and the rest of the report describes the first.
        out: The results.
        compare: Further detectors to show beside it in the report.
        false_reject_rate: Share of normal images that may be called anomalous; sets the threshold
            from the detector's held-out scores.
        batch_size: Images scored at once; changes speed and memory only.
        multi_class: Measure on every category below the root, each with its own threshold; results
            go to a folder each, their figures and means to categories.json.

    """
    if not model:
        raise UserError("--model: none given; name a folder that `detect train` made")
    require_positive(batch_size=batch_size)
    require_share(false_reject_rate=false_reject_rate)
    categories = data.open_all(out) if multi_class else [data.open(out)]
    require_output(out)
    from detect.evaluation.protocol import table
    from detect.evaluation.report_data import Comparison
    from detect.evaluation.run import averages, report_on, write_averages
    from detect.evaluation.testset import open_test_set
    from synth.base.device import make_accelerator

    device = make_accelerator("fp32").device
    warn_of_other_categories((*model, *compare), categories)
    tests = [open_test_set(category, progress_bar) for category in categories]
    rows: list[Comparison] = []
    for test in tests:
        for caution in test.cautions():
            warn(caution)
        place = out / test.category.name if multi_class else out
        place.mkdir(parents=True, exist_ok=True)
        report = report_on(
            test, model, compare, place, device, batch_size, progress_bar, false_reject_rate
        )
        show(report, place, warn_of_rate=false_reject_rate is not None)
        rows.append(Comparison(test.category.name, report.image, report.pixel))
    if multi_class:
        write_averages(out / "categories.json", rows)
        say(table([*rows, averages(rows)]))
        say(f"categories: {out / 'categories.json'}")


def warn_of_other_categories(models: Sequence[Path], categories: Sequence[Category]) -> None:
    """Load every detector once, and warn of test images that it was not made for."""
    from detect.evaluation.run import check_detectors

    for folder, made_for in check_detectors(models).items():
        for category in categories:
            if category.name not in made_for:
                warn(
                    f"{folder} was trained on category {' and '.join(made_for)}, the test images "
                    f"are of {category.name}; unless you want that, give another model or category"
                )


def show(report: "ReportData", place: Path, *, warn_of_rate: bool) -> None:
    """Write the page, and print its findings and its table."""
    from detect.evaluation.protocol import table
    from detect.evaluation.report_data import Comparison
    from detect.report.evaluation import write_report
    from detect.report.text import findings

    write_report(place / "report.html", report)
    if warn_of_rate and report.calibration.note:
        warn(report.calibration.note)
    if report.seeds is not None and report.seeds.caution:
        warn(report.seeds.caution)
    for sentence in findings(report):
        say(sentence)
    say(table([Comparison(report.method, report.image, report.pixel), *report.comparisons]))
    say(f"report: {place / 'report.html'}")

"""`detect benchmark`."""

from typing import TYPE_CHECKING, Annotated

import tyro

from detect.options import DEFAULT_METHOD, BasicOptions, MoreOptions, SeedList, TrainOptions
from synth.base.command import progress_bar, say, warn
from synth.base.errors import UserError
from synth.base.options import Folder, OptionalFolder, require_output
from synth.data.options import DATASET_NAMES

if TYPE_CHECKING:
    from detect.grid.plan import Plan

Methods = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="METHOD[:PRESET] [...]", help_behavior_hint="(default: --method)"),
]
NamedSources = Annotated[
    tuple[str, ...],
    tyro.conf.arg(metavar="[NAME=]SOURCE [...]", help_behavior_hint="(optional)"),
]
Categories = Annotated[tuple[str, ...], tyro.conf.arg(metavar="all|STR [STR ...]")]


def benchmark(
    training: BasicOptions,
    more: MoreOptions,
    *,
    out: Folder,
    methods: Methods = (),
    sources: NamedSources = (),
    dataset: DATASET_NAMES = "folder",
    root: OptionalFolder = None,
    categories: Categories = ("all",),
    seeds: SeedList = (0, 1, 2),
    dry_run: bool = False,
) -> None:
    """Train methods on anomaly sources, by category and seed, and compare them in one table.

    Every method is trained on every source with the same seeds and measured on the test images,
    which choose nothing. The first row is what the others are compared with. Run the same command
    again to continue after an interruption or to add methods, sources, categories or seeds. Writes
    benchmark.html, .md, .csv and .png, and every detector into a folder of its own.

    Args:
        training: How to train; not used: --seed, and --preset for a METHOD that names its own.
        more: Rarely needed.
        out: The benchmark.
        methods: Methods to train, each with a preset if you like: realnet:small.
        sources: Where the pixels of anomalies come from, each [NAME=]SOURCE: an SIA folder that
            `synth generate` made (or one with <dataset>/<category> for each), textures:FOLDER,
            defects:FOLDER, noise, cutpaste, or a mixture such as 0.5*FOLDER+0.5*textures:FOLDER.
        dataset: Layout of the data, as in `detect train`.
        root: Folder of the data.
        categories: Categories below the root.
        seeds: Seeds to train with, one training each.
        dry_run: Print what is done, what is left and, where some of it has been measured on this
            device, how long the rest may take; train and write nothing.

    """
    from detect.grid.plan import check_seeds, make_entries, make_plan
    from detect.grid.preview import preview
    from synth.data.catalog import choose_categories, open_category

    options = TrainOptions.of(training, more)
    check_seeds(options, seeds)
    if methods and training.method != DEFAULT_METHOD:
        raise UserError(f"--method: got {training.method}, not used with --methods; leave it out")
    entries = make_entries(methods or (training.method,), sources, options)
    names = choose_categories(dataset, root, () if categories == ("all",) else categories)
    opened = [open_category(dataset, root, name, progress_bar, out) for name in names]
    plan = make_plan(opened, entries, seeds, out)
    if dry_run:
        say(preview(plan))
        return
    require_output(out)
    carry_out(plan)


def carry_out(plan: "Plan") -> None:
    """Train what is left, write the page and print its findings."""
    from detect.grid.run import run_grid
    from detect.report.grid import findings, notes, write_page

    results = run_grid(plan, progress_bar)
    if not plan.is_main:
        return
    grid = write_page(plan, results)
    for note in notes(grid):
        warn(note)
    for sentence in findings(grid):
        say(sentence)
    say(f"benchmark: {plan.out / 'benchmark.html'}")

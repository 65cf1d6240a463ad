"""`detect benchmark`."""

from typing import Annotated

import tyro

from detect.options import Seeds, Sources, TrainOptions
from synth.base.command import progress_bar, say, warn
from synth.base.options import Folder, OptionalFolder, require_output
from synth.data.options import DATASET_NAMES

Methods = Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD[:PRESET] [...]")]
Categories = Annotated[tuple[str, ...], tyro.conf.arg(metavar="all|STR [STR ...]")]


def benchmark(
    training: TrainOptions,
    *,
    methods: Methods,
    out: Folder,
    dataset: DATASET_NAMES = "folder",
    root: OptionalFolder = None,
    categories: Categories = ("all",),
    source: Sources = ("sia",),
    sia: OptionalFolder = None,
    textures: OptionalFolder = None,
    seeds: Seeds = (0, 1, 2),
    dry_run: bool = False,
) -> None:
    """Train methods on the categories of a dataset and tabulate what they reach and cost.

    Every figure is of the weights of the last step; the test images choose nothing. The same
    command goes on after an interruption; more methods, categories or seeds may be added later.
    Writes benchmark.html, .md, .csv and .png, and every detector into a folder of its own.

    Args:
        training: How to train; --seed and --method are not used, --preset where METHOD has none.
        methods: realnet, patch-nn (nearest neighbour of patches, a random bank) and
            patch-nn-coreset, each with a preset if you like: realnet:small.
        out: The benchmark.
        dataset: Layout of the data, as in `detect train`.
        root: Folder of the data.
        categories: Categories below the root.
        source: What anomalies are made of, as in `detect train`.
        sia: What `synth generate` made; or a folder with <dataset>/<category> for each.
        textures: Photographs of textures.
        seeds: A training for each.
        dry_run: Say what is done, what is left and, where some of it has been measured on this
            device, how long the rest may take; train nothing, write nothing.

    """
    from detect.grid import commands as grid
    from detect.grid.preview import preview
    from detect.training.source_words import parse_parts
    from synth.data.catalog import choose_categories, open_category

    grid.check_grid(training, seeds)
    parts = parse_parts(source, {"sia": sia, "textures": textures})
    entries = grid.method_entries(methods, training, parts)
    names = choose_categories(dataset, root, () if categories == ("all",) else categories)
    opened = [open_category(dataset, root, name, progress_bar, out) for name in names]
    plan = grid.benchmark(opened, entries, seeds, out)
    if dry_run:
        say(preview(plan))
        return
    require_output(out)
    page = grid.carry_out(plan, progress_bar)
    if page is None:
        return
    for note in page.notes:
        warn(note)
    for sentence in page.findings:
        say(sentence)
    say(f"benchmark: {out / 'benchmark.html'}")

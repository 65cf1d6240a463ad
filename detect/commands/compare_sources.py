"""`detect compare-sources`."""

from typing import Annotated

import tyro

from detect.options import Seeds, TrainOptions
from synth.base.command import progress_bar, say, warn
from synth.base.options import Folder, require_output
from synth.data.options import DataOptions

NamedSources = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=]SOURCE [...]")]


def compare_sources(
    data: DataOptions,
    training: TrainOptions,
    *,
    sources: NamedSources,
    out: Folder,
    seeds: Seeds = (0, 1, 2),
    dry_run: bool = False,
) -> None:
    """Train the same detector on several anomaly sources and tell what they are worth.

    Every source is trained on with the same seeds and settings and measured on the test images with
    the weights of the last step; the others are compared with the first, seed by seed. The same
    command goes on after an interruption; more sources or seeds may be added later. Writes
    comparison.html, .md, .csv and .png, and every detector into a folder of its own.

    Args:
        data: Which images; their test split needs normal and anomalous ones.
        training: How to train; --seed is not used.
        sources: What anomalies are made of, each [NAME=]SOURCE: a folder of anomaly images,
            textures:FOLDER, noise, cutpaste, or a mixture such as 0.5*FOLDER+0.5*textures:FOLDER.
        out: The comparison.
        seeds: A training for each.
        dry_run: Say what is done, what is left and, where some of it has been measured on this
            device, how long the rest may take; train nothing, write nothing.

    """
    from detect.grid.commands import carry_out, check_grid, comparison, source_entries
    from detect.grid.preview import preview

    check_grid(training, seeds)
    entries = source_entries(sources, training)
    plan = comparison(data.open(out), entries, seeds, out)
    if dry_run:
        say(preview(plan))
        return
    require_output(out)
    page = carry_out(plan, progress_bar)
    if page is None:
        return
    if len(seeds) == 1:
        warn(page.notes[0])
    for sentence in page.findings:
        say(sentence)
    say(f"comparison: {out / 'comparison.html'}")

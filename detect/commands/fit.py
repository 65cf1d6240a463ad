"""`detect fit`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from detect.methods import METHODS
from detect.options import DEFAULT_METHOD, MethodName, TrainOptions
from synth.base.command import progress_bar, say, warn
from synth.base.options import Folder, require_output, require_positive
from synth.data.options import DATASET_NAMES, DataOptions

Photos = Annotated[
    Path | None,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="PHOTOS", help_behavior_hint="(none for textures)"),
]
CategoryName = Annotated[
    str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="(default: the only one)")
]
Minutes = Annotated[
    float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: the preset's steps)")
]


def fit(
    photos: Photos = None,
    *,
    out: Folder,
    dataset: DATASET_NAMES = "folder",
    category: CategoryName = None,
    method: MethodName = DEFAULT_METHOD,
    preset: str = "tiny",
    diffusion: Literal["tiny", "small", "base"] = "tiny",
    minutes: Minutes = None,
    skip_synth: bool = False,
    dry_run: bool = False,
) -> None:
    """Make a detector from a folder of photographs: the whole chain in one command.

    Looks at the images, trains a diffusion model, draws anomalies, trains a detector, sets its
    threshold and measures it where there are test images. The commands are printed. Run it again
    after an interruption: it goes on where it stopped.

    Args:
        photos: Folder of normal photographs; with train/good and test/<defect> below it is measured
            as well.
        out: Everything that is made; begin with index.html.
        dataset: Layout of the photographs.
        category: Category below the folder.
        method: As in `detect train`. The default ranks magnetic tiles 12 points better than
            realnet.
        preset: Of the detector.
        diffusion: Preset of the diffusion model.
        minutes: Of training of the diffusion model.
        skip_synth: No diffusion model: a detector that needs anomalies gets shifted copies of the
            photographs.
        dry_run: Look at the images, and say what would be done and how long it takes.

    """
    require_positive(minutes=minutes)
    options = TrainOptions(method=method, preset=preset)
    options.check()
    row = METHODS[method]
    data = DataOptions(dataset=dataset, root=photos, category=category)
    opened = data.open(out)
    require_output(out)
    from detect.fitting import Chain, estimate, look, run_chain, write_index

    looked = look(opened, progress_bar)
    for line in looked.lines:
        say(line)
    for line in looked.cautions:
        warn(line)
    steps = () if minutes is None else ("--minutes", f"{minutes:g}")
    needs_synth = row.needs_anomalies and not skip_synth
    chain = Chain(
        out=out,
        data=words(data),
        diffusion=("--preset", diffusion, *steps) if needs_synth else None,
        train=("--method", method, "--preset", preset),
        needs_anomalies=row.needs_anomalies,
        measured=len({record.is_anomalous for record in opened.test}) == 2,
    )
    say(estimate(opened, chain, row, options, progress_bar))
    if dry_run:
        for stage in chain.stages():
            say(f"{stage.title}:\n  {stage.line}")
        return
    out.mkdir(parents=True, exist_ok=True)
    run_chain(chain, say, warn)
    page = write_index(chain, f"{opened.name} ({dataset})", looked)
    say(f"\neverything made: {page}")
    say(f"next: {chain.next_line}")


def words(data: DataOptions) -> tuple[str, ...]:
    """The options as one types them."""
    root = () if data.root is None else ("--root", str(data.root))
    category = () if data.category is None else ("--category", data.category)
    return ("--dataset", data.dataset, *root, *category)

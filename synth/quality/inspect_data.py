"""The images that `synth inspect` looks at, and the normal images that they are compared with."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synth.base.backbones import DEFAULT_BACKBONE, BackboneConfig
from synth.base.progress import Bars
from synth.data.catalog import Category
from synth.data.normals import Normals, load_normals
from synth.diffusion.model import DiffusionModel
from synth.images import read_image
from synth.quality.groups import Examined, examine
from synth.quality.reference import Reference, make_reference, save_reference
from synth.quality.sheets import SCRUBBED, draw_files, sample_files
from synth.sia.reader import SiaFolder

SAMPLES_FOLDER = "samples"


class Sampling(NamedTuple):
    """Which samples of a model are looked at: images 0..num-1 of `seed` at each strength."""

    strengths: Sequence[float]
    num: int
    seed: int


class Inspected(NamedTuple):
    """What is compared and with what; `folder` is the one that `images` are of, both or neither.

    frames: the file of sample 0 at each strength, by rising strength.
    """

    normals: Normals
    reference: Reference
    samples: Sequence[Examined] = ()
    folder: SiaFolder | None = None
    images: Examined | None = None
    backbone: BackboneConfig = DEFAULT_BACKBONE
    frames: Mapping[float, Path] = {}

    @property
    def parts(self) -> list[Examined]:
        """All that was looked at."""
        return [*self.samples, *([] if self.images is None else [self.images])]


def open_normals(
    category: Category,
    size: tuple[int, int],
    bars: Bars,
    backbone: BackboneConfig = DEFAULT_BACKBONE,
) -> Inspected:
    """Load a category's training images at `size` and measure them; nothing is compared yet."""
    normals = load_normals(category, size, bars)
    reference = make_reference(normals.fit, normals.held, backbone)
    return Inspected(normals, reference, backbone=backbone)


def add_samples(
    data: Inspected,
    model: DiffusionModel,
    sampling: Sampling,
    out: Path,
    bars: Bars,
    tell: Callable[[str], None],
) -> Inspected:
    """Draw samples into `out`/samples, where they stay, and look at them; first `tell` how many.

    At strengths of SCRUBBED that were not asked for, only sample 0 is drawn.

    Raises UserError for a category that a conditional model does not know.
    """
    category = data.normals.category.name if model.conditional else None
    model.label(category)
    key = "-".join([model.digest, f"seed{sampling.seed}", *([category] if category else [])])
    place = out / SAMPLES_FOLDER / key
    nums = dict.fromkeys(SCRUBBED, 1) | dict.fromkeys(sampling.strengths, sampling.num)
    files = {s: sample_files(place / f"s{s:g}", num) for s, num in sorted(nums.items())}
    missing = sum(not path.exists() for paths in files.values() for path in paths)
    if missing:
        tell(
            f"samples to draw: {missing} ({sampling.num} at each of --strengths, 1 at others for "
            "the slider); a smaller --num is quicker, its figures are rougher"
        )
    samples = []
    for s, paths in files.items():
        draw_files(model, s, len(paths), sampling.seed, paths[0].parent, bars, category)
        if s not in sampling.strengths:
            continue

        def read(number: int, paths: Sequence[Path] = paths) -> NDArray[np.uint8]:
            return read_image(paths[number])

        strengths = np.full(len(paths), s)
        samples.append(examine(data.reference, f"samples at s = {s:g}", read, strengths, bars))
    return data._replace(samples=samples, frames={s: paths[0] for s, paths in files.items()})


def add_folder(data: Inspected, folder: SiaFolder, bars: Bars) -> Inspected:
    """Look at every image of an SIA folder."""
    strengths = np.array([row.get("strength") for row in folder.rows], np.float64)
    images = examine(data.reference, "folder", folder.read_image, strengths, bars)
    return data._replace(folder=folder, images=images)


def keep_reference(
    data: Inspected, model: DiffusionModel, path: Path, warn: Callable[[str], None]
) -> None:
    """Save the reference beside a model that was trained on these images; else `warn`."""
    name = data.normals.category.name
    trained_on = model.config.get("data", {})
    if model.conditional:
        trained_on = trained_on.get(name)
    if data.normals.to_json() != trained_on:
        warn(f"{path} was trained on other images than these, which it is compared with here")
    elif data.backbone == DEFAULT_BACKBONE:
        save_reference(path, data.reference, name if model.conditional else None)

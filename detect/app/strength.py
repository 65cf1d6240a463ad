"""The Strength view without a page: one seed at rising strength, its blend into a photograph."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from detect.app.look import VIEW_PX, fitted
from detect.heatmap import outline
from synth.base.errors import UserError
from synth.base.files import atomic_path
from synth.base.progress import no_bars
from synth.blend import blend, draw_mask
from synth.data.foreground import foreground_for
from synth.diffusion.model import DiffusionModel
from synth.images import read_image, resize
from synth.pictures import Image
from synth.quality.kid import Measured
from synth.quality.plot import DOTS_PER_INCH, LOOK, MODEL, band, curve
from synth.quality.reference import load_reference, quality_scores
from synth.quality.sheets import SCRUBBED as STRENGTHS
from synth.quality.sheets import draw_files


class Drawn(NamedTuple):
    """A model's images of one seed, each at one of STRENGTHS, as files; the last may be missing."""

    model: DiffusionModel
    category: str
    seed: int
    files: tuple[Path, ...] = ()

    def at(self, strength: float) -> int:
        """Which of the images is nearest to a strength."""
        return int(np.argmin(np.abs(np.array(STRENGTHS[: len(self.files)]) - strength)))


def draw(model: DiffusionModel, category: str, seed: int, folder: Path) -> Iterator[Drawn]:
    """Draw image 0 of a seed at each strength, once: what is below `folder` stays.

    The images so far after each. Raises UserError as `sample_images`.
    """
    label = category if model.conditional else None
    drawn = Drawn(model, category, seed)
    for s in STRENGTHS:
        place = folder / model.digest / category / str(seed) / f"{s:g}"
        files = draw_files(model, s, 1, seed, place, no_bars, label)
        drawn = drawn._replace(files=(*drawn.files, *files))
        yield drawn


def blended(drawn: Drawn, strength: float, photograph: Path, opacity: float) -> tuple[Image, Image]:
    """The photograph with the mask outlined, and blended: uint8 [H, W, 3] RGB, twice.

    The mask is that of Perlin noise and foreground that `synth blend` draws, by the seed. Raises
    UserError as `read_image`, and where the photograph has no foreground.
    """
    normal = fitted(read_image(photograph), VIEW_PX)
    size = (normal.shape[0], normal.shape[1])
    rule = foreground_for(drawn.model.config["dataset"], drawn.category, [normal])
    mask = draw_mask(rule.apply(normal), np.random.default_rng(drawn.seed))
    if not mask.any():
        raise UserError(f"{photograph.name}: no mask hits its foreground; draw another seed")
    source = resize(read_image(drawn.files[drawn.at(strength)]), size)
    return outline(normal, mask), blend(normal, source, mask, opacity)


def distances(model_folder: Path, drawn: Drawn) -> Sequence[float]:
    """How far each image is from normal (`quality_scores`). Raises as `load_reference`."""
    reference = load_reference(model_folder, drawn.category if drawn.model.conditional else None)
    return quality_scores(reference, map(read_image, drawn.files)).tolist()


def write_curve(path: Path, values: Sequence[float]) -> None:
    """Draw distances against strength as a PNG, beside that of normal images, which is 1."""
    with style.context(LOOK), atomic_path(path) as partial:
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        axes = figure.add_subplot()
        points = [(s, Measured(value, None)) for s, value in zip(STRENGTHS, values, strict=False)]
        curve(axes, "this seed", MODEL, points)
        band(axes, Measured(1.0, None))
        axes.set(xlabel="Strength s", ylabel="Distance to nearest\ntraining image")
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        figure.savefig(partial, format="png", dpi=DOTS_PER_INCH)

"""Contact sheets of a category: its normal images, their foreground, samples, blended images."""

from collections.abc import Sequence

import numpy as np

from synth.catalog import Category, held_out
from synth.foreground import foreground_for
from synth.model import DiffusionModel
from synth.normals import load_readable, spread
from synth.pictures import Images, SheetRow
from synth.progress import Bars
from synth.sampling import sample_images
from synth.sia import SiaFolder

STRENGTHS = (0.0, 0.1, 0.2, 0.5)
NUM_STEPS = 20
BATCH_SIZE = 8


def draw_samples(
    model: DiffusionModel,
    strength: float,
    num: int,
    seed: int,
    bars: Bars,
    category: str | None = None,
) -> Images:
    """SDAS images 0..num-1 at one strength, uint8 [num, H, W, 3] RGB.

    category: for conditional models only.
    """
    parts = []
    with bars(f"sampling at strength {strength:g}", "image") as update:
        for start in range(0, num, BATCH_SIZE):
            indices = range(start, min(start + BATCH_SIZE, num))
            strengths = [strength] * len(indices)
            parts.append(sample_images(model, strengths, seed, indices, NUM_STEPS, category))
            update(indices.stop, num)
    return np.concatenate(parts)


def strength_rows(
    model: DiffusionModel,
    num: int,
    seed: int,
    bars: Bars,
    strengths: Sequence[float] = STRENGTHS,
    category: str | None = None,
) -> list[SheetRow]:
    """A row of samples per strength, all from the same noise."""
    return [
        SheetRow(
            strength_label(strength),
            list(draw_samples(model, strength, num, seed, bars, category)),
        )
        for strength in strengths
    ]


def strength_label(strength: float) -> str:
    """The title of a row of samples."""
    plain = " (plain DDPM)" if strength == 0 else ""
    return f"SDAS from the same noise, strength s = {strength:g}{plain}"


def normal_rows(category: Category, num: int, size: tuple[int, int], bars: Bars) -> list[SheetRow]:
    """The first `num` images to train on at `size`, and their foreground where it is not all.

    The foreground rule is the one that training fits at this size.
    """
    paths = [record.path for record in held_out(category)[0]]
    few = load_readable([paths[n] for n in spread(len(paths))], size, bars)
    rule = foreground_for(category.dataset, category.name, list(few))
    normals = load_readable(paths[:num], size, bars)
    rows = [SheetRow(f"normal images of {category.name}", list(normals))]
    if rule.method != "everything":
        masks = [rule.apply(image) for image in normals]
        rows.append(
            SheetRow(f"their foreground, where anomalies may lie (rule: {rule.method})", masks)
        )
    return rows


def blended_rows(folder: SiaFolder, num: int) -> list[SheetRow]:
    """The first `num` blended images of a folder and their masks."""
    numbers = range(min(num, len(folder.rows)))
    return [
        SheetRow("blended images", [folder.read_image(n) for n in numbers]),
        SheetRow("their masks", [folder.read_mask(n) for n in numbers]),
    ]

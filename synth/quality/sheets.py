"""Rows of contact sheets: samples at rising strength, images of an SIA folder, near-copies."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from synth.base.progress import Bars
from synth.data.catalog import Record
from synth.diffusion.model import DiffusionModel
from synth.diffusion.sampling import sample_images
from synth.images import read_image, read_mask, write_png
from synth.pictures import Images, SheetRow
from synth.quality.groups import Examined
from synth.sia.reader import SiaFolder

STRENGTHS = (0.0, 0.1, 0.2, 0.5)
SCRUBBED = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Strengths at which one seed is shown under a slider."""
NUM_STEPS = 20
BATCH_SIZE = 8
IN_A_ROW = 8


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
            strength_label(strength, category),
            list(draw_samples(model, strength, num, seed, bars, category)),
        )
        for strength in strengths
    ]


def strength_label(strength: float, category: str | None = None) -> str:
    """The title of a row of samples."""
    of = "" if category is None else f"{category}: "
    plain = " (plain DDPM)" if strength == 0 else ""
    return f"{of}SDAS from the same noise, strength s = {strength:g}{plain}"


def sample_files(folder: Path, num: int) -> list[Path]:
    """Where samples 0..num-1 of one strength lie."""
    return [folder / f"{number:06d}.png" for number in range(num)]


def draw_files(
    model: DiffusionModel,
    strength: float,
    num: int,
    seed: int,
    folder: Path,
    bars: Bars,
    category: str | None = None,
) -> list[Path]:
    """SDAS images 0..num-1 at one strength as PNGs in `folder`; those that are there stay."""
    paths = sample_files(folder, num)
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    with bars(f"sampling at strength {strength:g}", "image", continues=True) as update:
        for start in range(0, len(missing), BATCH_SIZE):
            batch = missing[start : start + BATCH_SIZE]
            strengths = [strength] * len(batch)
            images = sample_images(model, strengths, seed, batch, NUM_STEPS, category)
            for number, image in zip(batch, images, strict=True):
                write_png(paths[number], image)
            update(num - len(missing) + start + len(batch), num)
    return paths


def folder_rows(folder: SiaFolder, examined: Examined, normals: Sequence[Record]) -> list[SheetRow]:
    """A few images of a folder by rising strength, with masks and normal images where it has them.

    normals: the records in which a pair's normal image is looked up by the end of its path.
    """
    count = len(folder.rows)
    order = np.argsort(examined.strengths, kind="stable")  # without a strength: last
    few = min(IN_A_ROW, count)
    chosen = [int(order[n * count // few]) for n in range(few)]
    images = SheetRow(
        f"{count} images of the folder, of which {few} by rising strength",
        [folder.read_image(n) for n in chosen],
        [caption(examined, n) for n in chosen],
    )
    if "mask_file_name" not in folder.rows[0]:
        return [images]
    masks = SheetRow("their masks", [read_mask(mask_path(folder, n), None) for n in chosen])
    if folder.config.get("method") != "sdas-pair":
        return [images, masks]
    ends = ["/" + folder.rows[n]["normal_file"] for n in chosen]
    starts = [[r.path for r in normals if r.path.as_posix().endswith(end)] for end in ends]
    shown = [read_image(p[0]) if p else np.full_like(images.images[0], 255) for p in starts]
    return [SheetRow("the normal images that they start from", shown), images, masks]


def mask_path(folder: SiaFolder, number: int) -> Path:
    """Where the mask of row `number` lies."""
    return folder.path / folder.rows[number]["mask_file_name"]


def copy_rows(pairs: Sequence[tuple[Examined, int]], training: Images) -> list[SheetRow]:
    """Images above the training images that are nearest to them."""
    nearest = [training[part.nearest[n]] for part, n in pairs]
    captions = [caption(part, n) for part, n in pairs]
    return [
        SheetRow("images nearest to a training image", [p.read(n) for p, n in pairs], captions),
        SheetRow("these training images", nearest),
    ]


def caption(examined: Examined, number: int) -> str:
    """Strength and distance of an image."""
    s, distance = examined.strengths[number], examined.quality[number]
    return ("" if np.isnan(s) else f"s {s:.3g}, ") + f"distance {distance:.2f}"

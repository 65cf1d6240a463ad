"""SDAS images into an SIA folder, and any one of them again from its row."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from synth.base.errors import UserError
from synth.base.files import config_differences, file_digest
from synth.base.options import Precision
from synth.base.seeding import derive_seed
from synth.diffusion.config import SdasConfig
from synth.diffusion.model import DiffusionModel
from synth.diffusion.pair import Pairing
from synth.diffusion.sampling import sample_images
from synth.images import read_image, write_png
from synth.making.candidates import Candidate, QualityRange, draw_accepted
from synth.pictures import Images
from synth.sia.reader import Item, OnImage, SiaFolder, SiaHeader, Written, write_sia
from synth.sia.rows import Row

METHOD, PAIR_METHOD = "sdas", "sdas-pair"


def draw_strength(config: SdasConfig, index: int) -> float:
    """The strength of image `index`, the same for all its candidates."""
    rng = np.random.default_rng(derive_seed(config.seed, index, 1))
    return config.strength.draw(index, rng)


def generate_sia(
    model: DiffusionModel,
    config: SdasConfig,
    out: Path,
    num_images: int,
    *,
    batch_size: int,
    category: str | None = None,
    precision: Precision | None = None,
    quality: QualityRange | None = None,
    pairing: Pairing | None = None,
    process: int = 0,
    num_processes: int = 1,
    on_image: OnImage | None = None,
) -> Written:
    """Fill `out`/<dataset>/<category> with `num_images` SDAS images.

    What is already there stays. category: needed where the model knows several. precision: the
    model's by default. quality: which candidates are accepted; all, and none is measured, if None.
    pairing: the normal images to draw anomalies into; then the folder has masks, and is of kind
    "blended". Raises UserError as `write_sia`, `draw_accepted` and `Pairing.region`.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: got {batch_size}, must be at least 1")
    header = sdas_header(model, config, category, precision, quality, pairing)

    def draw(batch: Sequence[Candidate]) -> Images:
        numbers, attempts = zip(*batch, strict=True)
        strengths = [draw_strength(config, number) for number in numbers]
        return sample_images(
            model,
            strengths,
            config.seed,
            numbers,
            config.num_steps,
            category,
            start=pairing and pairing.start(model, numbers, config.num_steps),
            attempts=attempts,
            precision=precision,
        )

    def make_items(indices: Iterator[int]) -> Iterator[Item]:
        for (number, attempt), image, score in draw_accepted(indices, batch_size, draw, quality):
            strength = draw_strength(config, number)
            row: Row = {"seed": config.seed, "strength": strength, "num_steps": config.num_steps}
            row |= {} if score is None else {"quality": score, "attempt": attempt}
            row |= {} if pairing is None else pairing.row(number, config.num_steps)
            mask = None if pairing is None else pairing.region(number)
            yield Item(number, image, mask, row)

    return write_sia(
        out / header.dataset / header.category,
        header,
        num_images,
        make_items,
        process=process,
        num_processes=num_processes,
        on_image=on_image,
    )


def sdas_header(
    model: DiffusionModel,
    config: SdasConfig,
    category: str | None,
    precision: Precision | None,
    quality: QualityRange | None,
    pairing: Pairing | None = None,
) -> SiaHeader:
    """What the images of a folder depend on. Raises UserError as `DiffusionModel.label`."""
    model.label(category)
    method = METHOD if pairing is None else PAIR_METHOD
    made_by: dict[str, Any] = {"method": method, **config.to_json(), "checkpoint": model.digest}
    made_by["image_size"] = list(model.image_size)
    made_by["precision"] = precision or model.precision
    made_by |= {} if quality is None else {"quality": quality.to_json()}
    made_by |= {} if pairing is None else {"pair": pairing.to_json()}
    kind = "source" if pairing is None else "blended"
    return SiaHeader(kind, model.config["dataset"], category or model.categories[0], made_by)


# One image again


class Remade(NamedTuple):
    """An image made again, and how it compares with its folder's, in one sentence."""

    path: Path
    identical: bool
    sentence: str


def remake_image(
    model: DiffusionModel,
    folder: SiaFolder,
    index: int,
    out: Path,
    pairing: Pairing | None = None,
) -> Remade:
    """Make image `index` of a folder again from its row, as `out`/<index>.png.

    pairing: needed for pairs. Raises UserError when the folder has no such image, or when another
    model, another method or other normal images made it, and for `out` inside the folder.
    """
    row = find_row(folder, index)
    require_maker(model, folder, pairing)
    if out.resolve().is_relative_to(folder.path.resolve()):
        raise UserError(f"--out: {out} is in {folder.path}, whose images stay; give another folder")
    image = sample_images(
        model,
        [row["strength"]],
        row["seed"],
        [index],
        row["num_steps"],
        folder.category,
        start=pairing and pairing.start(model, [index], row["num_steps"]),
        attempts=[row.get("attempt", 0)],
        precision=folder.config["precision"],
    )[0]
    path = out / f"{index:06d}.png"
    write_png(path, image)
    if file_digest(path) == row["sha256"]:
        return Remade(path, True, f"image {index}: identical to the one of its row, byte for byte")
    there = folder.path / row["file_name"]
    if file_digest(there) != row["sha256"]:
        sentence = f"image {index}: not the one of its row; {there} was altered too"
        return Remade(path, False, sentence)
    levels = np.abs(image.astype(int) - read_image(there))
    sentence = (
        f"image {index}: {np.count_nonzero(levels)} of {levels.size} values differ from the "
        f"folder's, by {levels.max()} of 255 levels at most"
        + (" (rounding of another batch or device)" if levels.max() <= 1 else "")
    )
    return Remade(path, False, sentence)


def find_row(folder: SiaFolder, index: int) -> Row:
    """The row of image `index`. Raises UserError when there is none."""
    for row in folder.rows:
        if row["index"] == index:
            return row
    raise UserError(
        f"{folder.path}: no image {index}; it has {folder.rows[0]['index']} to "
        f"{folder.rows[-1]['index']}"
    )


def require_maker(model: DiffusionModel, folder: SiaFolder, pairing: Pairing | None) -> None:
    """Raise UserError unless the model's weights, and the normal images, made the folder."""
    method, checkpoint = folder.config.get("method"), folder.config.get("checkpoint")
    if method not in (METHOD, PAIR_METHOD):
        raise UserError(
            f"{folder.path}: method {method!r}; only images of method {METHOD!r} or "
            f"{PAIR_METHOD!r} can be made again"
        )
    if checkpoint != model.digest:
        raise UserError(
            f"{folder.path}: made by a model with digest {checkpoint}, this one's is "
            f"{model.digest}; give the model that made the folder"
        )
    recorded = folder.config.get("pair")
    given = None if pairing is None else pairing.to_json()
    if recorded != given:
        differences = config_differences(recorded or {}, given or {})
        raise UserError(
            f"{folder.path}: made from other normal images ({'; '.join(differences)}); give the "
            "--dataset and --root that it was made with"
        )

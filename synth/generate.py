"""SDAS images into an SIA folder, and blended training images made from one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from synth.blend import OPACITY, blend_random
from synth.config import SdasConfig
from synth.errors import UserError
from synth.foreground import ForegroundRule
from synth.images import read_image, resize
from synth.model import DiffusionModel
from synth.normals import Normals
from synth.pictures import digest
from synth.sampling import sample_images
from synth.seeding import derive_seed
from synth.sia import Item, OnImage, SiaFolder, SiaHeader, write_sia


def draw_strength(config: SdasConfig, index: int) -> float:
    """The strength of image `index`: s ~ U(strength) by its own seed. Source: RealNet, SDAS."""
    rng = np.random.default_rng(derive_seed(config.seed, index, 1))
    return round(float(rng.uniform(*config.strength)), 6)


def generate_sia(
    model: DiffusionModel,
    config: SdasConfig,
    out: Path,
    num_images: int,
    *,
    batch_size: int,
    process: int = 0,
    num_processes: int = 1,
    on_image: OnImage | None = None,
) -> Path:
    """Fill `out`/<dataset>/<category> with `num_images` SDAS images; the SIA folder's path.

    What is already there stays. Raises UserError as `write_sia`.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: got {batch_size}, must be at least 1")

    def make_items(indices: list[int]) -> Iterator[Item]:
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            strengths = [draw_strength(config, index) for index in batch]
            images = sample_images(model, strengths, config.seed, batch, config.num_steps)
            for index, image, strength in zip(batch, images, strengths, strict=True):
                row = {"seed": config.seed, "strength": strength, "num_steps": config.num_steps}
                yield Item(index, image, None, row)

    dataset, category = model.config["dataset"], model.config["category"]
    made_by = {"method": "sdas", **config.to_json(), "checkpoint": model.digest}
    made_by |= {"image_size": list(model.image_size), "precision": model.precision}
    folder = out / dataset / category
    header = SiaHeader("source", dataset, category, made_by)
    write_sia(
        folder,
        header,
        num_images,
        make_items,
        process=process,
        num_processes=num_processes,
        on_image=on_image,
    )
    return folder


def blend_sia(
    normals: Normals,
    rule: ForegroundRule,
    sources: SiaFolder,
    out: Path,
    num_images: int,
    *,
    seed: int,
    on_image: OnImage | None = None,
) -> Path:
    """Fill `out`/<dataset>/<category> with blended images and their masks; the SIA folder's path.

    Dataset and category are the normals'. Image i blends normal i mod N with a random source by its
    own seed. Raises UserError as `write_sia`, and when a foreground is empty.
    """
    size, records, images = normals.size, normals.fit_records, normals.fit
    foregrounds = [rule.apply(image) for image in images]
    empty = [
        record.path for record, mask in zip(records, foregrounds, strict=True) if not mask.any()
    ]
    if empty:
        raise UserError(
            f"{empty[0]}: no foreground found (rule {rule.method}); remove the image, or give "
            "--foreground everything"
        )

    def make_items(indices: list[int]) -> Iterator[Item]:
        for index in indices:
            rng = np.random.default_rng(derive_seed(seed, index))
            n, p = index % len(images), int(rng.integers(len(sources.rows)))
            source = resize(read_image(sources.path / sources.rows[p]["file_name"]), size)
            blended = blend_random(images[n], foregrounds[n], source, rng, opacity=OPACITY)
            row = {"seed": seed, "opacity": blended.opacity, "normal_file": records[n].path.name}
            row |= {
                "source_index": sources.rows[p]["index"],
                "strength": sources.rows[p].get("strength"),
            }
            yield Item(index, blended.image, blended.mask, row)

    made_by = {"method": "blend", "seed": seed, "opacity": list(OPACITY), "image_size": list(size)}
    made_by |= {"foreground": rule.to_dict(), "normals": digest(images)}
    made_by |= {"sources": dict(sources.config), "num_sources": len(sources.rows)}
    made_by |= {"sources_of": f"{sources.dataset}/{sources.category}"}
    category = normals.category
    folder = out / category.dataset / category.name
    header = SiaHeader("blended", category.dataset, category.name, made_by)
    write_sia(folder, header, num_images, make_items, on_image=on_image)
    return folder

"""Blended training images and their masks into an SIA folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from synth.base.errors import UserError
from synth.base.seeding import derive_seed
from synth.blend import OPACITY, blend_random
from synth.data.foreground import ForegroundRule
from synth.data.normals import Normals
from synth.images import read_image, resize
from synth.pictures import digest
from synth.sia.reader import Item, OnImage, SiaFolder, SiaHeader, Written, write_sia


def blend_sia(
    normals: Normals,
    rule: ForegroundRule,
    sources: SiaFolder,
    out: Path,
    num_images: int,
    *,
    seed: int,
    process: int = 0,
    num_processes: int = 1,
    on_image: OnImage | None = None,
) -> Written:
    """Fill `out`/<dataset>/<category> with blended images and their masks.

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

    def make_item(index: int) -> Item:
        rng = np.random.default_rng(derive_seed(seed, index))
        n, p = index % len(images), int(rng.integers(len(sources.rows)))
        source = resize(read_image(sources.path / sources.rows[p]["file_name"]), size)
        blended = blend_random(images[n], foregrounds[n], source, rng, opacity=OPACITY)
        row = {"seed": seed, "opacity": blended.opacity, "normal_file": records[n].path.name}
        row |= {
            "source_index": sources.rows[p]["index"],
            "strength": sources.rows[p].get("strength"),
        }
        return Item(index, blended.image, blended.mask, row)

    def make_items(indices: Iterator[int]) -> Iterator[Item]:
        return map(make_item, indices)

    made_by: dict[str, Any] = {"method": "blend", "seed": seed, "opacity": list(OPACITY)}
    made_by |= {"image_size": list(size)}
    made_by |= {"foreground": rule.to_dict(), "normals": digest(images)}
    made_by |= {"sources": dict(sources.config), "num_sources": len(sources.rows)}
    made_by |= {"sources_of": f"{sources.dataset}/{sources.category}"}
    category = normals.category
    header = SiaHeader("blended", category.dataset, category.name, made_by)
    return write_sia(
        out / category.dataset / category.name,
        header,
        num_images,
        make_items,
        process=process,
        num_processes=num_processes,
        on_image=on_image,
    )

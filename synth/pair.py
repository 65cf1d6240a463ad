"""Pairs: anomaly images whose chain starts at a real normal image, so that each one has its own.

Ours, beyond RealNet. The chain keeps of the normal image what noise of the chosen depth leaves of
it (SDEdit, Meng et al., ICLR 2022). N images, C channels, H x W pixels.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from synth.catalog import Category
from synth.config import NUM_TRAIN_TIMESTEPS, Precision, SdasConfig
from synth.difference import DifferenceRule, Image, fit_difference_rule
from synth.errors import UserError
from synth.files import read_json
from synth.model import DiffusionModel
from synth.normals import Normals
from synth.pictures import Images, all_grey, digest
from synth.progress import Update
from synth.sampling import sample_images
from synth.sdas import Start
from synth.seeding import derive_seed
from synth.sia_format import HEADER_FILE

NUM_FIT_PAIRS = 64
FIT_BATCH_SIZE = 8
FIT_STREAM = 2
"""Keeps the noise that masks are fitted on apart from the images' own."""


# Depth


def chain_position(depth: float, num_steps: int) -> int:
    """The position k that a chain of `num_steps` steps starts at: round(depth * num_steps) remain.

    Raises UserError unless depth lies in (0, 1), and for fewer than two steps: the last adds no
    noise, so that strength would have no effect.
    """
    if not 0 < depth < 1:
        raise UserError(
            f"depth: got {depth:g}, must lie between 0 (the normal image as it is) and 1 (all of "
            "the chain, which keeps nothing of it)"
        )
    steps = round(depth * num_steps)
    if steps < 2:
        raise UserError(
            f"depth: got {depth:g}, which leaves {steps} of {num_steps} steps, and the last adds "
            f"no noise; give {2 / num_steps:g} or more, or a larger --num-steps"
        )
    return steps - 1


def timestep(depth: float, num_steps: int) -> int:
    """The timestep, of 1000, that a normal image is noised to. Raises as `chain_position`."""
    return chain_position(depth, num_steps) * (NUM_TRAIN_TIMESTEPS // num_steps)


# Images


def make_start(model: DiffusionModel, normals: Images, depth: float, num_steps: int) -> Start:
    """Where chains start, for normal images uint8 [N, H, W, 3] RGB of the model's size.

    Raises UserError as `chain_position`, for another size, and for colours that the model lacks.
    """
    if normals.shape[1:3] != model.image_size:
        got, wanted = (f"{h}x{w}" for h, w in (normals.shape[1:3], model.image_size))
        raise UserError(f"normal images: got {got} pixels, the model draws {wanted}")
    if model.num_channels == 1 and not all_grey(normals):
        raise UserError(
            "normal images: got colours, the model draws grey images; give images of its product"
        )
    levels = torch.from_numpy(normals).to(model.unet.device).permute(0, 3, 1, 2)
    x_0 = levels[:, : model.num_channels].float() / 127.5 - 1  # [N, C, H, W]
    return Start(x_0, chain_position(depth, num_steps))


def pair_images(
    model: DiffusionModel,
    normals: Images,
    depth: float,
    strengths: Sequence[float],
    seed: int,
    indices: Sequence[int],
    num_steps: int,
    category: str | None = None,
    *,
    precision: Precision | None = None,
) -> Images:
    """SDAS images that start at `normals`, both uint8 [N, H, W, 3] RGB.

    Image i depends on (model, category, num_steps, depth, normal, strength, seed, i) alone.
    Raises as `make_start` and `sample_images`.
    """
    start = make_start(model, normals, depth, num_steps)
    about = (seed, indices, num_steps, category)
    return sample_images(model, strengths, *about, start=start, precision=precision)


# Masks


def chance_pairs(
    model: DiffusionModel,
    normals: Images,
    depth: float,
    seed: int,
    num_steps: int,
    category: str | None = None,
    *,
    precision: Precision | None = None,
    on_pair: Update | None = None,
) -> Iterator[tuple[Image, Image]]:
    """NUM_FIT_PAIRS pairs at s = 0 and their normals, taken evenly from all; by `seed` alone."""
    own_seed = derive_seed(seed, FIT_STREAM)
    chosen = np.random.default_rng(own_seed).permutation(max(NUM_FIT_PAIRS, len(normals)))
    for start in range(0, NUM_FIT_PAIRS, FIT_BATCH_SIZE):
        indices = range(start, min(start + FIT_BATCH_SIZE, NUM_FIT_PAIRS))
        few = normals[chosen[indices.start : indices.stop] % len(normals)]
        zeros = [0.0] * len(indices)
        about = (own_seed, indices, num_steps, category)
        images = pair_images(model, few, depth, zeros, *about, precision=precision)
        yield from zip(images, few, strict=True)
        if on_pair is not None:
            on_pair(indices.stop, NUM_FIT_PAIRS)


# What a folder of pairs is made from


class Pairing(NamedTuple):
    """The normal image of every image of a folder, how deep it is noised, and the masks' rule.

    images: uint8 [M, H, W, 3] RGB of the model's size. files: where they lie below the data's root.
    """

    images: Images
    files: Sequence[str]
    depth: float
    rule: DifferenceRule

    def normal(self, number: int) -> Image:
        """Of image `number`: the normal images take turns."""
        return self.images[number % len(self.images)]

    def start(self, model: DiffusionModel, numbers: Sequence[int], num_steps: int) -> Start:
        """Where the chains of these images start."""
        normals = np.stack([self.normal(number) for number in numbers])
        return make_start(model, normals, self.depth, num_steps)

    def mask(self, number: int, image: Image) -> NDArray[np.bool_]:
        """Where image `number` differs from its normal image, bool [H, W]; may be empty."""
        return self.rule.mask(image, self.normal(number))

    def row(self, number: int, num_steps: int) -> dict[str, Any]:
        """What the row of image `number` says besides."""
        file = self.files[number % len(self.files)]
        return {"normal_file": file, "depth": timestep(self.depth, num_steps)}

    def to_json(self) -> dict[str, Any]:
        """As recorded in sia.json."""
        return {
            "depth": self.depth,
            "normals": digest(self.images),
            "num_normals": len(self.images),
            "masks": self.rule.to_json(),
        }


def open_pairing(
    model: DiffusionModel,
    normals: Normals,
    depth: float,
    config: SdasConfig,
    folder: Path,
    *,
    root: Path | None = None,
    precision: Precision | None = None,
    on_pair: Update | None = None,
) -> Pairing:
    """Pairs of a category's images to train on, for an SIA folder.

    A begun folder keeps its own rule for masks. Raises UserError for images of another category
    than the model's, and as `make_start`.
    """
    category = normals.category
    dataset, known = model.config["dataset"], model.categories
    if category.dataset != dataset or category.name not in known:
        raise UserError(
            f"normal images: got {category.dataset}/{category.name}, the model is of "
            f"{dataset}/{', '.join(known)}; give the options --dataset, --root and --category of "
            "its training"
        )
    make_start(model, normals.fit[:1], depth, config.num_steps)
    recorded = recorded_rule(folder)
    if recorded is None:
        recorded = fit_difference_rule(
            chance_pairs(
                model,
                normals.fit,
                depth,
                config.seed,
                config.num_steps,
                category.name,
                precision=precision,
                on_pair=on_pair,
            )
        )
        recorded = recorded_rule(folder) or recorded  # another process was faster
    files = relative_files(category, [record.path for record in normals.fit_records], root)
    return Pairing(normals.fit, files, depth, recorded)


def recorded_rule(folder: Path) -> DifferenceRule | None:
    """The rule for masks of a begun SIA folder."""
    if not (folder / HEADER_FILE).exists():
        return None
    values = read_json(folder / HEADER_FILE).get("config", {}).get("pair", {}).get("masks")
    return None if values is None else DifferenceRule.from_json(values)


def relative_files(category: Category, paths: Sequence[Path], root: Path | None) -> list[str]:
    """Paths below `root`; below the folder that holds all of the category where that is none."""
    if root is None or not all(path.is_relative_to(root) for path in paths):
        root = Path(os.path.commonpath([record.path.parent for record in category.records]))
    return [path.relative_to(root).as_posix() for path in paths]

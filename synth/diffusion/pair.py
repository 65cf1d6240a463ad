"""Pairs: anomalies drawn into real normal images, each of which is the anomaly's own normal image.

Ours, beyond RealNet: the chain starts at the normal image, noised to a chosen depth, and changes a
region of it only, so that the region is the exact mask. N images, C channels, H x W pixels.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from synth.base.errors import UserError
from synth.base.seeding import derive_seed
from synth.blend import MAX_DRAWS, draw_mask
from synth.data.foreground import ForegroundRule
from synth.data.normals import Normals
from synth.diffusion.config import NUM_TRAIN_TIMESTEPS
from synth.diffusion.model import DiffusionModel
from synth.diffusion.sdas import Start
from synth.pictures import Image, Images, all_grey, digest

REGION_STREAM = 2
"""Keeps the seed of an image's region apart from those of its noise and its strength."""


# Depth


def chain_position(depth: float, num_steps: int) -> int:
    """The position k that a chain of `num_steps` steps starts at: round(depth * num_steps) remain.

    Raises UserError unless depth lies in (0, 1), and for fewer than two steps: the last adds no
    noise, so that strength would have no effect.
    """
    if not 0 < depth < 1:
        raise UserError(
            f"pair: got depth {depth:g}, must lie between 0 (the normal image as it is) and 1 (all "
            "of the chain, which keeps nothing of it)"
        )
    steps = round(depth * num_steps)
    if steps < 2:
        raise UserError(
            f"pair: got depth {depth:g}, which leaves {steps} of {num_steps} steps, and the last "
            f"adds no noise; give {2 / num_steps:g} or more, or a larger --num-steps"
        )
    return steps - 1


def timestep(depth: float, num_steps: int) -> int:
    """The timestep, of 1000, that a normal image is noised to. Raises as `chain_position`."""
    return chain_position(depth, num_steps) * (NUM_TRAIN_TIMESTEPS // num_steps)


# Images


def make_start(
    model: DiffusionModel,
    normals: Images,
    depth: float,
    num_steps: int,
    regions: NDArray[np.bool_] | None = None,
) -> Start:
    """Where chains start, for normal images uint8 [N, H, W, 3] RGB of the model's size.

    regions: bool [N, H, W], what changes; everything if None. Raises UserError as `chain_position`,
    for another size, and for colours that the model lacks.
    """
    if normals.shape[1:3] != model.image_size:
        got, wanted = (f"{h}x{w}" for h, w in (normals.shape[1:3], model.image_size))
        raise UserError(f"normal images: got {got} pixels, the model draws {wanted}")
    if model.num_channels == 1 and not all_grey(normals):
        raise UserError(
            "normal images: got colours, the model draws grey images; give images of its product"
        )
    device = model.unet.device
    levels = torch.from_numpy(normals).to(device).permute(0, 3, 1, 2)[:, : model.num_channels]
    where = None if regions is None else torch.from_numpy(regions).to(device)[:, None]
    return Start(levels.float() / 127.5 - 1, chain_position(depth, num_steps), where)


# What a folder of pairs is made from


class Pairing(NamedTuple):
    """The normal image and the region of every image of a folder, and how deep it is noised.

    images: uint8 [M, H, W, 3] RGB of the model's size. files: where they lie below the data's root.
    seed: with the number of an image, of its region, which lies on the foreground by `foreground`.
    """

    images: Images
    files: Sequence[str]
    depth: float
    seed: int
    foreground: ForegroundRule

    def normal(self, number: int) -> Image:
        """Of image `number`, uint8 [H, W, 3]: the normal images take turns."""
        return self.images[number % len(self.images)]

    def region(self, number: int) -> NDArray[np.bool_]:
        """What changes in image `number`, bool [H, W]: a Perlin mask on the foreground.

        Raises UserError where there is no foreground, or none that masks can hit.
        """
        rng = np.random.default_rng(derive_seed(self.seed, number, REGION_STREAM))
        foreground = self.foreground.apply(self.normal(number))
        region = draw_mask(foreground, rng)
        if not region.any():
            raise UserError(
                f"{self.files[number % len(self.files)]}: its foreground (rule "
                f"{self.foreground.method}) is {foreground.mean():.1%} of the image, which "
                f"{MAX_DRAWS} masks miss; give --foreground everything, or remove the image"
            )
        return region

    def start(self, model: DiffusionModel, numbers: Sequence[int], num_steps: int) -> Start:
        """Where the chains of these images start."""
        normals = np.stack([self.normal(number) for number in numbers])
        regions = np.stack([self.region(number) for number in numbers])
        return make_start(model, normals, self.depth, num_steps, regions)

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
            "foreground": self.foreground.to_dict(),
        }


def make_pairing(
    model: DiffusionModel,
    normals: Normals,
    depth: float,
    seed: int,
    num_steps: int,
    foreground: ForegroundRule,
    root: Path | None = None,
) -> Pairing:
    """Pairs of a category's images to train on; their files are named relative to `root`.

    Raises UserError for images of another data set or category than the model's, and as
    `make_start`.
    """
    dataset, category = normals.category.dataset, normals.category.name
    if dataset != model.config["dataset"] or category not in model.categories:
        raise UserError(
            f"normal images: got {dataset}/{category}, the model is of {model.config['dataset']}/"
            f"{', '.join(model.categories)}; give the --dataset and --root of its training"
        )
    make_start(model, normals.fit[:1], depth, num_steps)
    files = relative_files(normals, root)
    return Pairing(normals.fit, files, depth, seed, foreground)


def relative_files(normals: Normals, root: Path | None) -> list[str]:
    """Where the images to train on lie below `root`.

    Where that is no folder of them (data that the package keeps): below the folder that holds all
    images of the category.
    """
    paths = [record.path for record in normals.fit_records]
    if root is None or not all(path.is_relative_to(root) for path in paths):
        root = Path(os.path.commonpath([r.path.parent for r in normals.category.records]))
    return [path.relative_to(root).as_posix() for path in paths]

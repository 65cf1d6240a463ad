"""How far an image is from the normal ones, in the features of a frozen network.

N images, M normal training images, D features: mean and deviation of every channel of every layer.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from synth.base.backbones import DEFAULT_BACKBONE, Backbone, BackboneConfig, build_backbone
from synth.base.errors import UserError
from synth.base.files import atomic_path
from synth.images import resize
from synth.pictures import Images

Features = NDArray[np.float32]
"""float32 [N, D]."""

ARRAYS = ("features", "mean", "std", "held_distances")


class Reference(NamedTuple):
    """A category's normal images as features, and how far apart they are.

    features: float32 [M, D] of the training images, standardised by their mean and std, each [D].
    held_distances: [H], of each held-out image to its nearest training image.
    image_size: height and width that images are scaled to before they are looked at.
    """

    backbone: Backbone
    image_size: tuple[int, int]
    features: Features
    mean: Features
    std: Features
    held_distances: NDArray[np.float32]

    @property
    def unit(self) -> float:
        """The held-out images' median distance: a quality of 1."""
        return max(float(np.median(self.held_distances)), 1e-6)

    def describe(self, images: Iterable[NDArray[np.uint8]]) -> Features:
        """Standardised features [N, D] of images, uint8 [H, W, 3] RGB, taken one at a time."""
        scaled = (resize(image, self.image_size) for image in images)
        return (embed(self.backbone, scaled) - self.mean) / self.std

    def unstandardised(self, features: Features) -> Features:
        """Features [N, D] as the network gave them, but for one factor.

        It makes the root mean square of the training images' features 1: networks differ in scale
        by orders of magnitude.
        """
        normal = self.features * self.std + self.mean
        scale = max(float(np.sqrt(np.square(normal).mean())), 1e-6)
        return (features * self.std + self.mean) / np.float32(scale)

    def quality(self, features: Features) -> NDArray[np.float32]:
        """`quality_scores` of images that `describe` has seen, float32 [N]."""
        return nearest_distance(features, self.features)[0] / np.float32(self.unit)


def make_reference(fit: Images, held: Images, config: BackboneConfig | None = None) -> Reference:
    """Measure training images `fit` and held-out ones, both uint8 [N, H, W, 3] RGB of one size.

    config: the network, by default DEFAULT_BACKBONE.
    """
    backbone = build_backbone(config or DEFAULT_BACKBONE)
    height, width = fit.shape[1:3]
    f_train = embed(backbone, fit)
    mean, std = f_train.mean(axis=0), f_train.std(axis=0)
    # A channel that hardly moves on normal images would decide alone.
    std = np.maximum(std, np.median(std)) + np.float32(1e-6)
    # Half precision, as it is saved: a fresh reference and a loaded one agree. |f| <= sqrt(M).
    features = ((f_train - mean) / std).astype(np.float16).astype(np.float32)
    d_held, _ = nearest_distance((embed(backbone, held) - mean) / std, features)
    return Reference(backbone, (height, width), features, mean, std, d_held)


def quality_scores(reference: Reference, images: Iterable[NDArray[np.uint8]]) -> Features:
    """How far images are from normal, float32 [N]; they are uint8 [H, W, 3] RGB, of any size.

    The distance to the nearest normal training image in standardised features, over the held-out
    normals' median: 1 is as far as a normal image, higher is more anomalous. Each image is looked
    at alone, so that its score does not depend on the others.
    """
    return reference.quality(reference.describe(images))


# Files


def reference_path(model_folder: Path, category: str | None = None) -> Path:
    """Where a model's reference lies; a conditional model has one for each category."""
    suffix = "" if category is None else f"-{category}"
    return model_folder / f"reference{suffix}.safetensors"


def save_reference(model_folder: Path, reference: Reference, category: str | None = None) -> None:
    """Write a reference into a model's folder. category: for conditional models only."""
    arrays = {name: np.ascontiguousarray(getattr(reference, name)) for name in ARRAYS}
    arrays["features"] = arrays["features"].astype(np.float16)
    height, width = reference.image_size
    about = {"backbone": reference.backbone.digest, "image_size": f"{height} {width}"}
    with atomic_path(reference_path(model_folder, category)) as partial:
        save_file(arrays, partial, metadata=about)


def load_reference(model_folder: Path, category: str | None = None) -> Reference:
    """Read what `save_reference` wrote.

    Raises UserError, with the way to make it, when it is missing, damaged, or of another network
    than DEFAULT_BACKBONE.
    """
    path = reference_path(model_folder, category)
    cure = f"`synth inspect --model {model_folder}` with the images of its training makes it anew"
    if not path.is_file():
        raise UserError(f"{path}: no such file, so that nothing tells what is normal; {cure}")
    backbone = build_backbone(DEFAULT_BACKBONE)
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            arrays = {name: file.get_tensor(name).astype(np.float32) for name in ARRAYS}
        height, width = map(int, about["image_size"].split())
    except (SafetensorError, LookupError, ValueError) as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}); {cure}") from error
    if about.get("backbone") != backbone.digest:
        raise UserError(f"{path}: made with another backbone than this version's; {cure}")
    return Reference(backbone, (height, width), **arrays)


# Features


def embed(backbone: Backbone, images: Iterable[NDArray[np.uint8]]) -> Features:
    """Spatial mean and deviation of every channel of every layer, float32 [N, 2 * sum(C_k)].

    One image at a time: on a CPU it costs no more than a batch, and rounding cannot differ.
    """
    rows = []
    with torch.no_grad():
        for image in images:
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255  # [1, 3, H, W]
            maps = [feature.flatten(2) for feature in backbone(pixels)]  # [1, C_k, H_k * W_k]
            moments = [m for f in maps for m in (f.mean(dim=2), f.std(dim=2, correction=0))]
            rows.append(torch.cat(moments, dim=1))
    return torch.cat(rows).numpy()


def nearest_distance(
    queries: Features, references: Features
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Euclidean distance of each query [N, D] to its nearest reference [M, D]: [N], and which.

    Exact differences, since the fast way over products takes equal vectors apart.
    """
    found = torch.cdist(
        torch.from_numpy(queries),
        torch.from_numpy(references),
        compute_mode="donot_use_mm_for_euclid_dist",
    ).min(dim=1)
    return found.values.numpy(), found.indices.numpy()

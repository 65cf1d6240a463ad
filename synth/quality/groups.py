"""How far groups of images are from a category's normal images, how varied, and how many copies.

N images, D features (see `synth.quality.reference`).
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from synth.base.progress import Bars
from synth.quality.check import copy_distance, far_distance, grain, pixel_noise
from synth.quality.kid import MIN_IMAGES, Measured, kid, thinned
from synth.quality.reference import Features, Reference, nearest_distance

MAX_BINS = 5
IMAGES_PER_BIN = 20
MAX_VALUES = 8
"""Up to so many different strengths are groups of their own, if all have enough images for KID on
average; else they are binned."""

ReadImage = Callable[[int], NDArray[np.uint8]]
"""Image by number, uint8 [H, W, 3] RGB."""


class Examined(NamedTuple):
    """Images that were looked at, one by one.

    read: any of them again. strengths: float64 [N], nan where unknown. features: float32 [N, D].
    quality: float32 [N], as `quality_scores`. nearest: the number of each one's training image.
    noise: float32 [N], as `pixel_noise`.
    """

    name: str
    read: ReadImage
    strengths: NDArray[np.float64]
    features: Features
    quality: NDArray[np.float32]
    nearest: NDArray[np.int64]
    noise: NDArray[np.float32]


def examine(
    reference: Reference, name: str, read: ReadImage, strengths: NDArray[np.float64], bars: Bars
) -> Examined:
    """Look at images 0..N-1; only one is in memory at a time."""
    noise = np.zeros(len(strengths), np.float32)

    def images() -> Iterator[NDArray[np.uint8]]:
        with bars(f"scoring {name}", "image") as update:
            for number in range(len(strengths)):
                image = read(number)
                noise[number] = pixel_noise(image[None])[0]
                yield image
                update(number + 1, len(strengths))

    features = reference.describe(images())
    distances, nearest = nearest_distance(features, reference.features)
    return Examined(
        name, read, strengths, features, distances / np.float32(reference.unit), nearest, noise
    )


@dataclass(frozen=True, kw_only=True)
class Group:
    """Images of one kind and strength beside the normal training images.

    quality: mean of `quality_scores`. share_far and share_copies: as in `SampleCheck`. diversity:
    mean distance between two of the images over that of two training images; None for one image.
    grain: pixel noise over that of held-out normal images: what is noisy without other structure
    has grain, what is damaged has distance.
    """

    name: str
    strength: float | None
    num_images: int
    kid: Measured | None
    quality: Measured
    share_far: float
    share_copies: float
    diversity: float | None
    grain: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; a figure with its error is an object of value and error."""
        measured = {"quality": self.quality._asdict(), "kid": self.kid and self.kid._asdict()}
        return asdict(self) | measured


def measure(
    reference: Reference, name: str, strength: float | None, features: Features, grain: float
) -> Group:
    """Measure a group of images by their standardised features [N, D] and their grain."""
    quality = reference.quality(features)
    own, normal = mean_pairwise(features), mean_pairwise(reference.features)
    error = float(quality.std(ddof=1)) / len(quality) ** 0.5 if len(quality) > 1 else None
    return Group(
        name=name,
        strength=strength,
        num_images=len(features),
        kid=kid(reference.unstandardised(features), reference.unstandardised(reference.features)),
        quality=Measured(float(quality.mean()), error),
        share_far=float((quality > far_distance(reference)).mean()),
        share_copies=float((quality < copy_distance(reference)).mean()),
        diversity=own / normal if own is not None and normal else None,
        grain=grain,
    )


def measure_by_strength(
    reference: Reference, examined: Examined, normal_noise: NDArray[np.float32]
) -> list[Group]:
    """One group for each of few strengths, else for bins of equally many images; rising.

    normal_noise: `pixel_noise` of held-out normal images.
    """
    known = np.flatnonzero(~np.isnan(examined.strengths))
    if not len(known):
        return []
    strengths = examined.strengths[known]
    values = np.unique(strengths)
    if len(values) <= min(MAX_VALUES, len(known) // MIN_IMAGES):
        parts = [known[strengths == value] for value in values]
    else:
        num_bins = min(MAX_BINS, max(1, len(known) // IMAGES_PER_BIN))
        parts = np.array_split(known[np.argsort(strengths, kind="stable")], num_bins)
    return [
        measure(
            reference,
            examined.name,
            round(float(examined.strengths[part].mean()), 6),
            examined.features[part],
            grain(examined.noise[part], normal_noise),
        )
        for part in parts
    ]


def mean_pairwise(features: Features) -> float | None:
    """Mean distance of two different rows of [N, D], from at most `kid.MAX_IMAGES` rows."""
    rows = torch.from_numpy(thinned(features))
    n = len(rows)
    return float(torch.cdist(rows, rows).sum()) / (n * (n - 1)) if n > 1 else None


def closest(parts: list[Examined], num: int) -> list[tuple[Examined, int]]:
    """The `num` images of all parts that are nearest to a training image, nearest first."""
    every = [(part, n) for part in parts for n in range(len(part.quality))]
    return sorted(every, key=lambda found: float(found[0].quality[found[1]]))[:num]

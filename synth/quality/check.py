"""Are a model's samples at strength 0 normal images?

Judged by their distances to training images, as `synth.quality.reference` measures them.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from synth.pictures import Images
from synth.quality.reference import Reference, quality_scores

Verdict = Literal["under-fit", "fit", "copies"]

FAR_QUANTILE, NEAR_QUANTILE = 0.95, 0.05
NEAR_FACTOR = 0.5
"""A copy is nearer to a training image than this times the near quantile of held-out normals."""
FAR_SHARE, COPY_SHARE = 0.3, 0.3
"""More samples than this beyond the far quantile are an under-fit model, nearer than a copy copies.

Of fresh normal images 5 % lie beyond the quantile, up to 20 % when it rests on 20 images."""
FAR_DISTANCE = 1.15
"""Samples of an under-fit model are also this many times as far as held-out normals: where these
are all alike, a sample beyond their quantile may still look like the product. Set by a look at
sheets: at 1.01 and 1.12 they show bricks, at 1.20 no grass, at 1.65 no gravel, at 1.98 foggy tiles.
"""
BLOCK, MIN_NOISE = 8, 0.25
"""Side in pixels of what noise is measured in; less noise than this counts as this much."""
GRAIN_FACTOR = 1.5
"""Samples with this many times the noise of normal images are called grainy."""


@dataclass(frozen=True, kw_only=True)
class SampleCheck:
    """Samples at s = 0 against held-out normals, by the distance to the nearest training image.

    Distances are relative to the held-outs' median; shares and the verdict are as `sentence` says.
    """

    verdict: Verdict
    distance: float
    share_far: float
    share_copies: float
    grain: float
    num_samples: int
    num_held_out: int

    @property
    def sentence(self) -> str:
        """The check in one sentence."""
        judged = (
            f"{percent(self.share_far)} of {self.num_samples} samples at strength 0 lie farther "
            f"off than 95 % of normal images, and {percent(self.share_copies)} are "
            f"near-copies of a training image (distance to these {self.distance:.2f} times, pixel "
            f"noise {self.grain:.2f} times that of {self.num_held_out} held-out normal images)"
        )
        if self.verdict == "under-fit":
            cause = (
                "they are noisier than the product"
                if self.grain > GRAIN_FACTOR
                else "their structure is off"
            )
            cure = "raise --num-steps (or --minutes) and run the same command again"
            return f"model under-fit: {judged}; {cause}: {cure}"
        if self.verdict == "copies":
            cure = "train fewer steps, or on more images"
            return f"model copies its training images: {judged}; {cure}"
        fits = "model nearly fits" if self.share_far > FAR_SHARE else "model fits"
        if self.grain > GRAIN_FACTOR:
            return f"{fits}: {judged}; more steps would take off the grain"
        return f"{fits}: {judged}; next: `synth generate`"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, with the sentence."""
        return {**asdict(self), "sentence": self.sentence}


def check_samples(reference: Reference, samples: Images, held_out: Images) -> SampleCheck:
    """Judge samples drawn at strength 0; both uint8 [N, H, W, 3] RGB of one size."""
    quality = quality_scores(reference, samples)
    share_far = float((quality > far_distance(reference)).mean())
    share_copies = float((quality < copy_distance(reference)).mean())
    distance = float(np.median(quality))
    verdict: Verdict = "copies" if share_copies > COPY_SHARE else "fit"
    if share_far > FAR_SHARE and distance > FAR_DISTANCE:
        verdict = "under-fit"
    return SampleCheck(
        verdict=verdict,
        distance=distance,
        share_far=share_far,
        share_copies=share_copies,
        grain=grain(pixel_noise(samples), pixel_noise(held_out)),
        num_samples=len(samples),
        num_held_out=len(held_out),
    )


def percent(share: float) -> str:
    """A share as text, such as 5 %."""
    return f"{100 * share:.0f} %"


def far_distance(reference: Reference) -> float:
    """The quality score beyond which an image looks unlike the product."""
    return float(np.quantile(reference.held_distances, FAR_QUANTILE)) / reference.unit


def copy_distance(reference: Reference) -> float:
    """The quality score below which an image is a near-copy of a training image."""
    return (
        NEAR_FACTOR * float(np.quantile(reference.held_distances, NEAR_QUANTILE)) / reference.unit
    )


def pixel_noise(images: Images) -> NDArray[np.float32]:
    """Standard deviation of each image's noise in grey levels, float32 [N].

    The root mean square of the diagonal Haar coefficients, which is that of white noise and 0 on
    slopes, in blocks of BLOCK pixels; of all blocks the median, so that edges do not count.
    Source: Donoho and Johnstone, 1994, with their median over blocks in place of pixels: whole grey
    levels would make it a multiple of 0.74.
    """
    side = max(2, min(BLOCK, *images.shape[1:3]) // 2 * 2)
    N, rows, columns = len(images), images.shape[1] // side, images.shape[2] // side
    grey = images[:, : rows * side, : columns * side].mean(axis=3)
    a, b = grey[:, ::2, ::2], grey[:, ::2, 1::2]
    c, d = grey[:, 1::2, ::2], grey[:, 1::2, 1::2]
    squares = np.square(a - b - c + d) / 4
    blocks = squares.reshape(N, rows, side // 2, columns, side // 2).mean(axis=(2, 4))
    return np.sqrt(np.median(blocks, axis=(1, 2))).astype(np.float32)


def grain(noise: NDArray[np.float32], normal: NDArray[np.float32]) -> float:
    """How many times the `pixel_noise` of normal images some images have: both medians, [N]."""
    return float(np.median(noise) / max(np.median(normal), MIN_NOISE))

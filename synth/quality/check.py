"""Are a model's samples at strength 0 normal images?

Judged by their distances to training images, as `synth.quality.reference` measures them.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from synth.pictures import Images
from synth.quality.reference import Reference, quality_scores

Verdict = Literal["under-fit", "fit", "copies"]

FAR_QUANTILE, NEAR_QUANTILE = 0.95, 0.05
NEAR_FACTOR = 0.5
"""A copy is nearer to a training image than this times the near quantile of held-out normals."""
FAR_SHARE, COPY_SHARE = 0.3, 0.3
"""More samples than this beyond the far quantile are an under-fit model, nearer than a copy copies.

Of fresh normal images 5 % lie beyond the quantile, up to 20 % when it rests on 20 images."""
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
            f"{percent(self.share_far)} of {self.num_samples} samples at strength 0 look unlike "
            f"the product, where 5 % of normal images do, and {percent(self.share_copies)} are "
            f"near-copies of a training image (distance to these {self.distance:.2f} times, pixel "
            f"noise {self.grain:.2f} times that of {self.num_held_out} held-out normal images)"
        )
        if self.verdict == "under-fit":
            cause = (
                "they are noisier than the product"
                if self.grain > GRAIN_FACTOR
                else "their structure is off"
            )
            cure = "raise --num-steps and run the same command again"
            return f"model under-fit: {judged}; {cause}: {cure}"
        if self.verdict == "copies":
            cure = "train fewer steps, or on more images"
            return f"model copies its training images: {judged}; {cure}"
        return f"model fits: {judged}"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types, with the sentence."""
        return {**asdict(self), "sentence": self.sentence}


def check_samples(reference: Reference, samples: Images, held_out: Images) -> SampleCheck:
    """Judge samples drawn at strength 0; both uint8 [N, H, W, 3] RGB of one size."""
    quality = quality_scores(reference, samples)
    share_far = float((quality > far_distance(reference)).mean())
    share_copies = float((quality < copy_distance(reference)).mean())
    verdict: Verdict = (
        "under-fit" if share_far > FAR_SHARE else "copies" if share_copies > COPY_SHARE else "fit"
    )
    return SampleCheck(
        verdict=verdict,
        distance=float(np.median(quality)),
        share_far=share_far,
        share_copies=share_copies,
        grain=pixel_noise(samples) / max(pixel_noise(held_out), 1e-3),
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


def pixel_noise(images: Images) -> float:
    """Median over images of the noise's standard deviation in grey levels.

    The median absolute diagonal Haar coefficient over 0.6745. Source: Donoho and Johnstone, 1994.
    Whole grey levels make it a multiple of 0.25 for colour images, of 0.74 for grey ones.
    """
    grey = images[:, : images.shape[1] // 2 * 2, : images.shape[2] // 2 * 2].mean(axis=3)
    a, b = grey[:, ::2, ::2], grey[:, ::2, 1::2]
    c, d = grey[:, 1::2, ::2], grey[:, 1::2, 1::2]
    sigma = np.median(np.abs(a - b - c + d) / 2, axis=(1, 2)) / 0.6745
    return float(np.median(sigma))

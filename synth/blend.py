"""Blending: an anomaly source pasted into a normal image under a mask (RealNet, Eq. 9)."""

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from synth.base.errors import UserError
from synth.perlin import perlin_mask

MAX_DRAWS = 64
OPACITY = (0.5, 1.0)
"""Range of δ for SDAS images."""


T = TypeVar("T", np.uint8, np.bool_)


class Blended(NamedTuple):
    """A blended image A: uint8 [H, W, 3] RGB; its mask M: bool [H, W]; its opacity δ in [0, 1]."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    opacity: float


def blend(
    normal: NDArray[np.uint8],
    source: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    opacity: float,
    *,
    truncate: bool = False,
) -> NDArray[np.uint8]:
    """Blend: A = (1 − M)·I + M·(δ·P + (1 − δ)·I), in float64, rounded to the nearest level.

    RealNet truncates instead, as `truncate` does, which darkens the masked pixels by half a level
    on average: a trace a detector could learn. Pixels outside the mask are untouched.

    normal I, source P: uint8 [H, W, 3], RGB. mask M: bool [H, W]. opacity δ: in [0, 1].
    Raises ValueError when the shapes differ or the opacity is out of range.
    """
    if not normal.shape == source.shape == (*mask.shape, 3):
        raise ValueError(
            f"normal, source, mask: got shapes {normal.shape}, {source.shape}, {mask.shape}; "
            "allowed are [H, W, 3] twice and [H, W]; resize the source and the mask first"
        )
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity: got {opacity}; allowed is 0 to 1")
    inside = np.flatnonzero(mask)
    i = normal.reshape(-1, 3)[inside].astype(np.float64)  # [pixels of the mask, 3]
    p = source.reshape(-1, 3)[inside].astype(np.float64)
    blended = normal.copy(order="C")
    levels = opacity * p + (1.0 - opacity) * i
    blended.reshape(-1, 3)[inside] = (levels if truncate else np.rint(levels)).astype(np.uint8)
    return blended


def blend_random(
    normal: NDArray[np.uint8],
    foreground: NDArray[np.bool_],
    source: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    opacity: tuple[float, float] = OPACITY,
    official: bool = False,
) -> Blended:
    """Make one training sample: M = Perlin ∧ foreground, δ ~ U(opacity), then the blend.

    An empty mask is drawn again. `official` gives RealNet's behaviour instead: one draw of its own
    Perlin field, and an empty one leaves a normal image that passes for an anomalous one (about 6 %
    of the samples, more on small foregrounds); besides, pixels are truncated. There is no smallest
    area, as in RealNet.

    normal, source: uint8 [H, W, 3], RGB. foreground: bool [H, W].
    Raises UserError when the foreground is empty, or so small that 64 masks in a row miss it.
    """
    mask = draw_mask(foreground, rng, official=official)
    if not official and not mask.any():
        raise UserError(
            f"foreground: got {np.count_nonzero(foreground)} of {foreground.size} pixels, which "
            f"{MAX_DRAWS} Perlin masks miss; allowed is a part of the image that masks can hit; "
            "give --foreground everything"
        )
    delta = float(rng.uniform(*opacity))
    return Blended(blend(normal, source, mask, delta, truncate=official), mask, delta)


def paste_random(
    normal: NDArray[np.uint8],
    foreground: NDArray[np.bool_],
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    rng: np.random.Generator,
) -> Blended:
    """Paste a cut-out at a random place: M is its part on the foreground, δ is 1.

    A random pixel of the cut-out is put on a random pixel of the foreground, up to MAX_DRAWS times:
    the first place with all of the cut-out on the foreground is taken, or else the one with most.

    normal: uint8 [H, W, 3], RGB. foreground: bool [H, W]. image, mask: the cut-out, uint8 [h, w, 3]
    and bool [h, w], not empty. Raises UserError when the foreground is empty.
    """
    own, targets = np.argwhere(mask), np.argwhere(foreground)  # [pixels, 2]
    if not len(targets):
        raise UserError("foreground: empty, nothing can be pasted; give --foreground everything")
    shape, best = foreground.shape, np.zeros_like(foreground)
    offset = np.zeros(2, np.int64)
    for _ in range(MAX_DRAWS):
        place = targets[rng.integers(len(targets))] - own[rng.integers(len(own))]
        shown = moved(mask, place, shape) & foreground
        if np.count_nonzero(shown) > np.count_nonzero(best):
            best, offset = shown, place
        if np.count_nonzero(best) == len(own):
            break
    return Blended(blend(normal, moved(image, offset, shape), best, 1.0), best, 1.0)


def moved(picture: NDArray[T], offset: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[T]:
    """Lay a picture [h, w, ...] on zeros [H, W, ...], its corner at `offset`, cut off at the edges.

    offset: (y, x), which may be negative; some of the picture lies inside.
    """
    (top, left), (height, width) = offset.tolist(), shape
    y, x = max(top, 0), max(left, 0)
    part = picture[y - top : height - top, x - left : width - left]
    canvas = np.zeros((height, width, *picture.shape[2:]), picture.dtype)
    canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    return canvas


def draw_mask(
    foreground: NDArray[np.bool_], rng: np.random.Generator, *, official: bool = False
) -> NDArray[np.bool_]:
    """Draw Perlin ∧ foreground, bool [H, W], until it is not empty, at most MAX_DRAWS times.

    official: RealNet's field, drawn once.
    """
    height, width = foreground.shape
    mask = np.zeros_like(foreground)
    max_draws = 1 if official else MAX_DRAWS
    for _ in range(max_draws if foreground.any() else 0):
        mask = perlin_mask(rng, (height, width), official=official) & foreground
        if mask.any():
            break
    return mask

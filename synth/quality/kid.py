"""Kernel distance between two sets of images in the features of a frozen network.

Source: Binkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", 2018, Sec. 4 and 3.1: the
unbiased estimate of MMD^2 with the kernel k(x, y) = (x.y / d + 1)^3.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_IMAGES = 1000
"""Of each set; larger ones are thinned evenly, so that memory and time are bounded."""
MIN_IMAGES = 4
"""Below this no half of a set has the two images that the estimate needs."""
NUM_HALVES = 200

Array = NDArray[np.float64]


class Measured(NamedTuple):
    """A figure and its standard error, None where one image tells nothing of it."""

    value: float
    error: float | None


def kid(x: NDArray[np.float32], y: NDArray[np.float32], seed: int = 0) -> Measured | None:
    """MMD^2 of features x [M, D] and y [N, D], with its error; None below MIN_IMAGES of either.

    The value is unbiased: it is 0 on average for sets of one distribution, so that it may be
    negative. The error is the spread over random halves of both sets (without replacement), which
    have the standard error of the whole; where the distributions are equal it is overstated, by up
    to sqrt(3).
    """
    if min(len(x), len(y)) < MIN_IMAGES:
        return None
    x, y = thinned(x), thinned(y)
    k_xx, k_yy, k_xy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    rng = np.random.default_rng(seed)
    in_x, in_y = halves(len(x), rng), halves(len(y), rng)
    whole = unbiased_mmd2(k_xx, k_yy, k_xy, np.ones((len(x), 1)), np.ones((len(y), 1)))
    parts = unbiased_mmd2(k_xx, k_yy, k_xy, in_x, in_y)
    return Measured(float(whole[0]), float(parts.std(ddof=1)))


def polynomial_kernel(x: NDArray[np.float32], y: NDArray[np.float32]) -> Array:
    """(x.y / d + 1)^3 for rows of x [M, D] and y [N, D]: float64 [M, N]."""
    return (x.astype(np.float64) @ y.T.astype(np.float64) / x.shape[1] + 1) ** 3


def unbiased_mmd2(k_xx: Array, k_yy: Array, k_xy: Array, in_x: Array, in_y: Array) -> Array:
    """MMD^2 of B pairs of subsets, given as columns of zeros and ones [M, B] and [N, B]: [B]."""
    m, n = in_x.sum(axis=0), in_y.sum(axis=0)
    within_x = ((k_xx @ in_x) * in_x).sum(axis=0) - k_xx.diagonal() @ in_x
    within_y = ((k_yy @ in_y) * in_y).sum(axis=0) - k_yy.diagonal() @ in_y
    across = ((k_xy @ in_y) * in_x).sum(axis=0)
    return within_x / (m * (m - 1)) + within_y / (n * (n - 1)) - 2 * across / (m * n)


def halves(count: int, rng: np.random.Generator) -> Array:
    """NUM_HALVES random halves of `count` things, as columns of zeros and ones."""
    places = rng.random((count, NUM_HALVES)).argsort(axis=0)
    return (places < count // 2).astype(np.float64)


def thinned(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most MAX_IMAGES rows, evenly spread."""
    count = min(len(features), MAX_IMAGES)
    return features[np.arange(count) * len(features) // count]

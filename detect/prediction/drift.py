"""Whether recent images still look like those that the threshold was set on.

The two-sample test of Kolmogorov and Smirnov on the image scores: D is the largest distance between
the two distribution functions. It sees any change: scores that rise, and scores that fall, as
behind a dirty lens. A share q of defects among the recent images moves D by q at most.
Source: Smirnov, 1939; exact by Hodges, 1958, as scipy computes it.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp, kstwo

from detect.calibration import Calibration
from synth.base.errors import UserError


class Drift(NamedTuple):
    """How recent scores, float64 [M], compare with those of the held-out normals.

    distance: D, in [0, 1]. place: the score where the functions lie so far apart. p_value: the
    chance of such a D without any change; up to 10,000 images exact, or with ties an upper bound.
    is_higher: whether recent scores are higher there. num_rejected: recent scores above the
    threshold; chance: of so many or more without any change.
    """

    scores: NDArray[np.float64]
    calibration: Calibration
    level: float
    distance: float
    place: float
    p_value: float
    is_higher: bool
    num_rejected: int
    chance: float

    @property
    def is_drift(self) -> bool:
        """Whether the p-value is at most the level: without any change as rarely as the level."""
        return self.p_value <= self.level

    @property
    def needed(self) -> int:
        """How few recent images can reach the level, if they all lie beyond the held-out ones."""
        return fewest_images(len(self.calibration.scores), self.level)

    @property
    def noticeable(self) -> float | None:
        """About the smallest D that reaches the level; None where not even 1 does."""
        n, m = len(self.calibration.scores), len(self.scores)
        if m < self.needed:
            return None
        return float(kstwo.isf(self.level, max(1, round(n * m / (n + m)))))

    @property
    def finding(self) -> str:
        """The result in one line."""
        direction = "higher" if self.is_higher else "lower"
        verdict = f"drift, scores are {direction} than they were" if self.is_drift else "no drift"
        return f"{verdict}: D = {self.distance:.2f}, p = {self.p_value:.2g} (level {self.level:g})"

    @property
    def power(self) -> str:
        """What these numbers of images can tell, in one line."""
        n, m = len(self.calibration.scores), len(self.scores)
        numbers = f"{m} recent and {n} held-out images"
        if self.noticeable is None:
            return (
                f"{numbers} can never reach the level {self.level:g}, whatever has changed: "
                f"{self.needed} recent images or more are needed"
            )
        return f"{numbers} tell differences of D = {self.noticeable:.2f} and more from chance"

    def to_json(self) -> dict[str, Any]:
        """All figures, for `json.dump`."""
        held = self.calibration.scores
        return {
            "drift": self.is_drift,
            "test": "Kolmogorov-Smirnov, two samples, two-sided",
            "distance": self.distance,
            "place": self.place,
            "p_value": self.p_value,
            "level": self.level,
            "smallest_noticeable_distance": self.noticeable,
            "fewest_recent_images": self.needed,
            "median": {"recent": float(np.median(self.scores)), "held_out": float(np.median(held))},
            "num_images": {"recent": len(self.scores), "held_out": len(held)},
            "rejects": {
                "threshold": self.calibration.threshold,
                "num_recent": self.num_rejected,
                "share_of_recent": self.num_rejected / len(self.scores),
                "guaranteed_share_of_normal": self.calibration.guaranteed_rate,
                "chance_of_so_many": self.chance,
            },
        }


def measure_drift(calibration: Calibration, scores: Sequence[float], level: float) -> Drift:
    """Compare recent scores with the held-out ones. Raises UserError for none, and for NaN."""
    recent = np.asarray(scores, np.float64)
    if not len(recent):
        raise UserError("images: none given; drift needs recent images")
    if not np.isfinite(recent).all():
        raise UserError("scores: got NaN or infinity, numbers are needed; check the model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where scipy turns to the approximation
        found: Any = ks_2samp(calibration.scores, recent)
    num_rejected = sum(calibration.rejects(score) for score in recent.tolist())
    return Drift(
        scores=recent,
        calibration=calibration,
        level=level,
        distance=float(found.statistic),
        place=float(found.statistic_location),
        p_value=float(found.pvalue),
        is_higher=bool(found.statistic_sign > 0),
        num_rejected=num_rejected,
        chance=calibration.chance_of_rejects(num_rejected, len(recent)),
    )


def fewest_images(num_held_out: int, level: float) -> int:
    """The smallest M for which D = 1 has a p-value of at most the level: 2 / C(n + M, n)."""
    M = 1
    while 2 / math.comb(num_held_out + M, M) > level:
        M += 1
    return M

"""Split conformal calibration: a threshold that needs no defects and keeps its promise.

If a fresh normal image is exchangeable with the n held-out normals, its score is equally likely to
take any of the n + 1 places among them. So "score > k-th smallest" rejects it with a chance of at
most (n + 1 - k) / (n + 1), whatever the distribution of the scores. The chance is over the draw of
the held-out normals too. Source: Papadopoulos et al., 2002; Vovk et al., 2005.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain

import numpy as np
from scipy.special import betaln

from synth.base.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The scores of held-out normal images and the share of normals that may be rejected.

    scores: n finite floats, ascending, n >= 1; false_reject_rate: in (0, 1).
    peaks: the pooled maps of the same images, ascending, where the score is not that; else empty.
    Build it with `calibrate`; the threshold and its guarantee follow from scores and rate.
    """

    scores: tuple[float, ...]
    false_reject_rate: float
    peaks: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.false_reject_rate < 1:
            raise UserError(
                f"false_reject_rate: got {self.false_reject_rate}, allowed is between 0 and 1; "
                "0.05 rejects up to one normal image in twenty"
            )
        if not self.scores:
            raise UserError("scores: got none, at least one is needed; hold out normal images")
        if self.peaks and len(self.peaks) != len(self.scores):
            raise UserError(
                f"peaks: got {len(self.peaks)} for {len(self.scores)} scores; calibrate again"
            )
        for values in (self.scores, self.peaks):
            if not all(map(math.isfinite, values)):
                raise UserError("scores: got NaN or infinity, numbers are needed; check the model")
            if list(values) != sorted(values):
                raise UserError(
                    "scores: got an unsorted list, must ascend; build it with calibrate()"
                )

    @property
    def rank(self) -> int:
        """K = ceil((n + 1) (1 - rate)), from 1, at most n; exact for the rate as it is written."""
        num_scores = len(self.scores)
        allowed = math.floor((num_scores + 1) * Fraction(str(self.false_reject_rate)))
        return min(num_scores + 1 - allowed, num_scores)

    @property
    def threshold(self) -> float:
        """The k-th smallest score: an image is rejected when its score is strictly above it."""
        return self.scores[self.rank - 1]

    @property
    def map_scores(self) -> tuple[float, ...]:
        """The pooled maps of the held-out images, ascending: in the units of maps."""
        return self.peaks or self.scores

    @property
    def map_threshold(self) -> float:
        """The k-th smallest of `map_scores`: anomalous pixels of a rejected image lie above it."""
        return self.map_scores[self.rank - 1]

    @property
    def guaranteed_rate(self) -> float:
        """The bound on P(reject a fresh normal): at most the rate asked for, if n >= `needed`."""
        return (len(self.scores) + 1 - self.rank) / (len(self.scores) + 1)

    @property
    def needed(self) -> int:
        """The fewest normals for which the rate can be promised: ceil(1 / rate) - 1."""
        return math.ceil(1 / Fraction(str(self.false_reject_rate))) - 1

    @property
    def note(self) -> str:
        """One line to warn with when the normals are too few for the rate; empty otherwise."""
        if len(self.scores) >= self.needed:
            return ""
        return (
            f"A false-reject rate of {self.false_reject_rate:g} needs {self.needed} held-out "
            f"normal images, got {len(self.scores)}: the threshold is their largest score and "
            f"promises {self.guaranteed_rate:.2g} only."
        )

    @property
    def promise(self) -> str:
        """One line: the threshold, the rate asked for, the guarantee and what it rests on."""
        return (
            f"threshold {self.threshold:.4g}: rejects at most {self.guaranteed_rate:.2%} of normal "
            f"images on average ({self.false_reject_rate:.2%} asked for; from {len(self.scores)} "
            "held-out normal images)"
        )

    def at_rate(self, false_reject_rate: float | None) -> "Calibration":
        """The same held-out scores at another rate, with its own threshold; None keeps the rate."""
        if false_reject_rate is None:
            return self
        return replace(self, false_reject_rate=float(false_reject_rate))

    def rejects(self, score: float) -> bool:
        """Whether an image with this score is called anomalous."""
        return score > self.threshold

    def p_value(self, score: float) -> float:
        """(1 + number of calibration scores >= score) / (n + 1): small for an unusual image."""
        at_least = len(self.scores) - bisect_left(self.scores, score)
        return (1 + at_least) / (len(self.scores) + 1)

    def chance_of_rejects(self, num_rejected: int, num_normal: int) -> float:
        """Chance that num_rejected or more of num_normal fresh normals are rejected.

        A very small value says that these normals differ from the held-out ones. Exact for distinct
        scores (beta-binomial with a = n + 1 - k, b = k), an upper bound with ties.
        """
        a, b = len(self.scores) + 1 - self.rank, self.rank
        r = np.arange(num_rejected, num_normal + 1)
        log_choose = -betaln(num_normal - r + 1, r + 1) - math.log(num_normal + 1)
        log_chance = log_choose + betaln(r + a, num_normal - r + b) - betaln(a, b)
        return min(1.0, float(np.exp(log_chance).sum()))

    def to_json(self) -> dict[str, object]:
        """Write a dict for `json.dump`; its threshold is for the reader and checked on load."""
        return {
            "false_reject_rate": self.false_reject_rate,
            "threshold": self.threshold,
            "scores": list(self.scores),
            **({"peaks": list(self.peaks)} if self.peaks else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, object]) -> "Calibration":
        """Read what `to_json` wrote; UserError when fields are missing or disagree."""
        match {"peaks": [], **data}:
            case {
                "scores": [*scores],
                "peaks": [*peaks],
                "false_reject_rate": float(rate),
                "threshold": threshold,
            } if all(isinstance(number, int | float) for number in (*scores, *peaks)):
                calibration = calibrate(scores, rate, peaks)
            case _:
                raise UserError(
                    f"calibration: got fields {sorted(data)}, needs scores (list), "
                    "false_reject_rate and threshold (numbers); calibrate again"
                )
        if calibration.threshold != threshold:
            raise UserError(
                f"calibration: got threshold {threshold}, its scores give "
                f"{calibration.threshold}; calibrate again"
            )
        return calibration


def calibrate(
    scores: Iterable[float], false_reject_rate: float, peaks: Iterable[float] = ()
) -> Calibration:
    """Calibrate on the scores of held-out normal images (any order), which training never saw.

    peaks: their pooled maps, for a method whose score is not that. The threshold is the k-th
    smallest score, k = ceil((n + 1) (1 - rate)): a fresh normal image scores above it with a chance
    of at most `false_reject_rate`. With fewer than ceil(1 / rate) - 1 normals it is the largest
    score, and `note` says what it promises.
    Raises UserError for no scores, NaN or infinite scores and a rate outside (0, 1).
    """
    return Calibration(
        scores=tuple(sorted(map(float, scores))),
        false_reject_rate=float(false_reject_rate),
        peaks=tuple(sorted(map(float, peaks))),
    )


def calibrate_together(calibrations: Sequence[Calibration]) -> Calibration:
    """One threshold from the scores of several categories together, at the first one's rate."""
    return calibrate(
        chain.from_iterable(each.scores for each in calibrations),
        calibrations[0].false_reject_rate,
        chain.from_iterable(each.peaks for each in calibrations),
    )

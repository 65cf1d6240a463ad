"""Which strength s an image has: the rule, its text on the command line, its JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synth.base.errors import UserError

UNIFORM = "uniform:"
StrengthJson = float | Sequence[float] | Mapping[str, Sequence[float]]
ALLOWED = "allowed are uniform:LOW,HIGH, one number, or a list such as 0.1,0.2,0.5; none below 0"


@dataclass(frozen=True)
class Strength:
    """s of every image: drawn evenly between two values, or taken from a list in turn."""

    values: tuple[float, ...]
    uniform: bool = False
    """Whether the two values are the ends of a range; else image i has values[i mod N]."""

    def __post_init__(self) -> None:
        if not self.values or not all(0 <= s < math.inf for s in self.values):
            raise UserError(f"strength: got {self.text}, must be 0 (plain DDPM) or more; {ALLOWED}")
        if self.uniform and (len(self.values) != 2 or self.values[0] > self.values[1]):
            raise UserError(f"strength: got {self.text}, must be LOW,HIGH with LOW <= HIGH")

    @classmethod
    def parse(cls, text: str) -> "Strength":
        """From the command line. Raises UserError for anything else than `ALLOWED`."""
        uniform = text.startswith(UNIFORM)
        try:
            values = tuple(float(part) for part in text.removeprefix(UNIFORM).split(","))
        except ValueError:
            raise UserError(f"strength: got {text!r}; {ALLOWED}") from None
        return cls(values, uniform)

    @classmethod
    def from_json(
        cls, value: float | Sequence[float] | Mapping[str, Sequence[float]]
    ) -> "Strength":
        """From what `to_json` gave."""
        if isinstance(value, Mapping):
            return cls(tuple(value["in_turn"]))
        if isinstance(value, Sequence):
            return cls(tuple(value), uniform=True)
        return cls((value,))

    def to_json(self) -> StrengthJson:
        """[low, high] of a range, as format 1 always had it; a number; {"in_turn": [...]}."""
        if self.uniform:
            return list(self.values)
        return self.values[0] if len(self.values) == 1 else {"in_turn": list(self.values)}

    @property
    def text(self) -> str:
        """As on the command line."""
        return UNIFORM * self.uniform + ",".join(f"{s:g}" for s in self.values)

    def draw(self, index: int, rng: np.random.Generator) -> float:
        """The strength of image `index`, whose own generator is `rng`.

        Source: RealNet, SDAS (its code draws s once per batch and does not record it).
        """
        if not self.uniform:
            return self.values[index % len(self.values)]
        low, high = self.values
        return round(float(rng.uniform(low, high)), 6)


PAPER = Strength((0.1, 0.2), uniform=True)
"""RealNet's range."""

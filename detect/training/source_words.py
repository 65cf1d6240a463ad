"""Anomaly sources as they are typed on the command line."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from detect.training.sources import SOURCES, Part
from synth.errors import UserError


def parse_parts(words: Sequence[str], folders: Mapping[str, Path | None]) -> tuple[Part, ...]:
    """`sia=0.5 textures=0.5` with a folder for each kind that has one.

    Raises UserError for an unknown or repeated kind, a weight that is not above 0, and a folder
    that no part uses.
    """
    parts: list[Part] = []
    for word in words:
        kind, _, weight = word.partition("=")
        if kind not in SOURCES:
            raise UserError(f"--source: no {kind!r}; allowed: {', '.join(SOURCES)}")
        if kind in [part.kind for part in parts]:
            raise UserError(f"--source: {kind} twice; give every source once, as {kind}=2")
        parts.append(Part(kind, folders.get(kind), parse_weight(word, weight or "1")))
    if not parts:
        raise UserError(f"--source: none given; allowed: {', '.join(SOURCES)}")
    for kind, folder in folders.items():
        if folder is not None and kind not in [part.kind for part in parts]:
            raise UserError(
                f"--{kind}: not used with --source {' '.join(words)}; leave it out or add {kind}"
            )
    return tuple(parts)


def parse_weight(word: str, weight: str) -> float:
    """A number above 0. Raises UserError, naming the whole `word`, for anything else."""
    if not re.fullmatch(r"\d*\.?\d+", weight) or float(weight) == 0:
        raise UserError(f"source {word!r}: {weight!r} is no weight; give a number above 0")
    return float(weight)

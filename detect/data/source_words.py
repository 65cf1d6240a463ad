"""Anomaly sources as they are typed on the command line."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detect.data.defects import require_unseen
from detect.data.sources import SOURCES, OpenSource, Part, open_source, open_sources
from detect.method import Method
from synth.base.errors import UserError
from synth.base.progress import Bars
from synth.data.catalog import Category


def chosen_sources(
    method: Method,
    words: Sequence[str],
    folders: Mapping[str, Path | None],
    categories: Sequence[Category],
    warn: Callable[[str], None],
    bars: Bars,
) -> list[OpenSource]:
    """Open the source of each category, from words as `parse_parts` reads them (none is sia).

    All are empty for a method that needs no anomalies. `warn` gets a line on anomaly images that
    show another category. Raises UserError as `parse_parts` and `open_sources`, and for a real
    defect that is also in the test split.
    """
    if not method.needs_anomalies:
        return [open_source(()) for _ in categories]
    sources = open_sources(parse_parts(words or ("sia",), folders), categories)
    for category, source in zip(categories, sources, strict=True):
        require_unseen(source.photographs, category, bars)
        for other in source.other_categories(category.name):
            warn(
                f"{folders['sia']} is of category {other}, the normal images of {category.name}: "
                "its images are blended into them anyway; if that is not meant, give another --sia"
            )
    return sources


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


def parse_named(words: Sequence[str]) -> dict[str, tuple[Part, ...]]:
    """Sources by name, from words such as `sdas=FOLDER`, `dtd=textures:FOLDER` and `noise`.

    A word is [NAME=]PART or, for a mixture, [NAME=]WEIGHT*PART+WEIGHT*PART; a part is KIND:FOLDER,
    a KIND without a folder, or the FOLDER of anomaly images. Without a name the word is the name.
    Raises UserError for a repeated name and a part without a weight in a mixture.
    """
    found: dict[str, tuple[Part, ...]] = {}
    for word in words:
        named = re.fullmatch(r"([^=:/\\+*]+)=(.+)", word)
        name, spec = (named[1], named[2]) if named else (word, word)
        if name in found:
            raise UserError(f"--sources: {name!r} twice; give each source a name of its own")
        found[name] = parse_mixture(spec)
    return found


def parse_mixture(spec: str) -> tuple[Part, ...]:
    """The parts of one source of `parse_named`."""
    weighted = re.fullmatch(r"(\d*\.?\d+)\*.+", spec)
    if not weighted:
        return (parse_part(spec, 1.0),)
    words = re.split(r"\+(?=\d*\.?\d+\*)", spec)
    pairs = [word.split("*", 1) for word in words]
    return tuple(parse_part(part, parse_weight(spec, weight)) for weight, part in pairs)


def parse_part(word: str, weight: float) -> Part:
    """KIND:FOLDER, KIND or FOLDER."""
    kind, colon, folder = word.partition(":")
    if kind not in SOURCES:
        return Part("sia", Path(word), weight)
    return Part(kind, Path(folder) if colon else None, weight)


def parse_weight(word: str, weight: str) -> float:
    """A number above 0. Raises UserError, naming the whole `word`, for anything else."""
    if not re.fullmatch(r"\d*\.?\d+", weight) or float(weight) == 0:
        raise UserError(f"source {word!r}: {weight!r} is no weight; give a number above 0")
    return float(weight)

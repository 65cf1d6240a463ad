"""What a row of an SIA folder must say: the table of data_cards/SIA_FORMAT.md, as checks."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from synth.diffusion.strength import Strength
from synth.sia.format import PATHS, Row


class Type(NamedTuple):
    """What JSON values a field may have, and its name in a message."""

    allowed: tuple[type, ...]
    words: str


TEXT = Type((str,), "a string")
INTEGER = Type((int,), "an integer")
NUMBER = Type((int, float), "a number")
MAYBE_NUMBER = Type((int, float, type(None)), "a number or null")

TYPES: dict[str, Type] = {
    "file_name": TEXT,
    "mask_file_name": TEXT,
    "dataset": TEXT,
    "category": TEXT,
    "index": INTEGER,
    "seed": INTEGER,
    "strength": MAYBE_NUMBER,  # null where a blend's sources have none
    "num_steps": INTEGER,
    "opacity": NUMBER,
    "normal_file": TEXT,
    "texture_file": TEXT,
    "source_index": INTEGER,
    "quality": NUMBER,
    "attempt": INTEGER,
    "depth": INTEGER,
    "sha256": TEXT,
    "mask_sha256": TEXT,
}
"""Known fields; a row may have others."""

REQUIRED = ("file_name", "dataset", "category", "index", "sha256")
REQUIRED_BY_METHOD: dict[str, tuple[str, ...]] = {
    "sdas": ("seed", "strength", "num_steps"),
    "sdas-pair": ("seed", "strength", "num_steps", "normal_file", "mask_file_name"),
    "blend": ("seed", "opacity", "normal_file", "source_index", "mask_file_name"),
    "textures": ("texture_file",),
    "noise": ("seed",),
    "shifted": ("seed", "normal_file"),
    "cutpaste": ("seed", "normal_file", "mask_file_name"),
}
"""Besides: what the images of a method depend on. Folders of other makers need not say it."""

RANGED = ("strength", "opacity")
"""Fields that lie in the range that the header's config gives under the same name."""


def required_fields(kind: str | None, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that every row of a folder must have."""
    masks = ("mask_file_name",) if kind == "blended" else ()
    method = REQUIRED_BY_METHOD.get(str(config.get("method")), ())
    return tuple(dict.fromkeys(REQUIRED + masks + method))


def row_faults(row: Row, header: Mapping[str, Any]) -> Iterator[str]:
    """Say what is wrong with a row, beside what its header says; a damaged header says less."""
    config = header.get("config")
    config = config if isinstance(config, Mapping) else {}
    for name in required_fields(header.get("kind"), config):
        if name not in row:
            yield f"no {name}"
    for name, type_ in TYPES.items():
        if name in row and not is_of(row[name], type_):
            yield f"{name} is {row[name]!r}, must be {type_.words}"
    for name in ("dataset", "category"):
        if name in header and row.get(name, header[name]) != header[name]:
            yield f"{name} is {row[name]!r}, sia.json says {header[name]!r}"
    for name in ("seed", "num_steps"):
        if row.get(name, config.get(name)) != config.get(name, row.get(name)):
            yield f"{name} is {row[name]!r}, sia.json says {config[name]!r}"
    for name in RANGED:
        yield from range_fault(name, row.get(name), config.get(name))
    yield from name_faults(row)


def is_of(value: object, type_: Type) -> bool:
    """Whether a JSON value is of a type; true and false are no numbers."""
    return isinstance(value, type_.allowed) and not isinstance(value, bool)


def index_of(row: object) -> int | None:
    """The index that a row gives, None where there is no such row or it gives none."""
    index = row.get("index") if isinstance(row, dict) else None
    return index if isinstance(index, int) and not isinstance(index, bool) else None


def range_fault(name: str, value: object, wanted: Any) -> Iterator[str]:
    """Compare a number with the range, the list or the one number that the header gives."""
    if wanted is None or not is_of(value, NUMBER):
        return
    try:
        low, high = value_range(wanted)
    except (ValueError, TypeError, KeyError):
        yield f"{name} cannot be checked: sia.json gives its range as {wanted!r}"
        return
    if not low <= value <= high:  # pyright: ignore[reportOperatorIssue]
        yield f"{name} is {value}, sia.json says {low:g} to {high:g}"


def value_range(wanted: Any) -> tuple[float, float]:
    """(lowest, highest) of what the header gives: [low, high], a number, a list to take in turn."""
    values = Strength.from_json(wanted).values
    return min(values), max(values)


def name_faults(row: Row) -> Iterator[str]:
    """Compare the names of a row's files with its index."""
    index = row.get("index")
    if not is_of(index, INTEGER):
        return
    for name, path_of in PATHS.items():
        if is_of(row.get(name), TEXT) and row[name] != path_of(row["index"]):
            yield f"{name} is {row[name]!r}, must be {path_of(row['index'])!r}"

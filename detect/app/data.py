"""The Data view without a page: the images of an SIA folder by strength, quality and category."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from detect.heatmap import outline
from synth.pictures import Image
from synth.sia.format import Row
from synth.sia.reader import SiaFolder
from synth.sia.validate import validate_sia

MEASURES = ("strength", "quality")
"""Numbers of rows that images can be chosen by."""


class Span(NamedTuple):
    """The smallest and the largest value that is shown of a number."""

    low: float
    high: float


def faults(folder: Path) -> list[str]:
    """What `synth validate` says of an SIA folder, in lines; none of one that is as it must be."""
    found: list[str] = []
    validate_sia(folder, found.append)
    return found


def span(rows: Iterable[Row], name: str) -> Span | None:
    """The values of a number in rows, in whole hundredths; None where all are the same."""
    values = [row[name] for row in rows if row.get(name) is not None] or [0.0]
    low, high = math.floor(100 * min(values)) / 100, math.ceil(100 * max(values)) / 100
    return Span(low, high) if min(values) < max(values) else None


def matching(folder: SiaFolder, categories: Iterable[str], **spans: Span) -> list[int]:
    """The numbers of the rows of these categories and within these spans, by rising strength.

    What a row does not say is within any span. No categories are all of them.
    """
    wanted = set(categories) or {row.get("category") for row in folder.rows}

    def fits(row: Row) -> bool:
        known = ((row.get(name), span) for name, span in spans.items())
        within = all(value is None or span.low <= value <= span.high for value, span in known)
        return within and row.get("category") in wanted

    numbers = [number for number, row in enumerate(folder.rows) if fits(row)]
    return sorted(numbers, key=lambda number: folder.rows[number].get("strength") or 0.0)


def picture(folder: SiaFolder, number: int) -> Image:
    """An image, uint8 [H, W, 3] RGB; its mask is outlined where it has one."""
    image = folder.read_image(number)
    return outline(image, folder.read_mask(number)) if folder.kind == "blended" else image


def caption(row: Row) -> str:
    """Number, strength and quality of a row, as far as it has them."""
    known = {"s": row.get("strength"), "quality": row.get("quality")}
    numbers = [f"{name} {value:.3g}" for name, value in known.items() if value is not None]
    return "\n".join([f"image {row['index']}", ", ".join(numbers)])

"""inspect.html: what `synth inspect` found, on one page that needs no other file."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from synth.base.files import write_text
from synth.base.html import bullets, document, embedded_image, paragraphs, section, table
from synth.quality.check import percent
from synth.quality.groups import Group
from synth.quality.kid import Measured

HEAD = (
    "Images", "Strength s", "Number", "Distance", "KID", "Unlike the product",
    "Near-copies", "Diversity", "Grain",
)  # fmt: skip


class Picture(NamedTuple):
    """A picture (PNG) with its heading and a caption."""

    title: str
    caption: str
    path: Path


def write_page(
    path: Path,
    title: str,
    findings: Sequence[str],
    groups: Sequence[Group],
    notes: Sequence[str],
    pictures: Sequence[Picture],
) -> None:
    """Write the page. Raises as `atomic_path`."""
    rows = [row(group) for group in groups]
    shown = (
        section(each.title, embedded_image(each.path.read_bytes(), "png", each.title), each.caption)
        for each in pictures
    )
    figures = table(HEAD, rows, range(1, len(HEAD))) if rows else ""
    head = f"<header><h1>{escape(title)}</h1>{bullets(findings)}</header>"
    write_text(path, document(title, [head, figures, paragraphs(notes), *shown]))


def row(group: Group) -> tuple[str, ...]:
    """The figures of a group as text, in the order of HEAD."""
    return (
        group.name,
        "" if group.strength is None else f"{group.strength:.3g}",
        str(group.num_images),
        with_error(group.quality, 2),
        with_error(group.kid, 3),
        percent(group.share_far),
        percent(group.share_copies),
        "" if group.diversity is None else f"{group.diversity:.2f}",
        f"{group.grain:.2f}",
    )


def with_error(measured: Measured | None, digits: int) -> str:
    """A value and its standard error, such as 1.52 ± 0.04; "too few" where there is none."""
    if measured is None:
        return "too few"
    error = "" if measured.error is None else f" ± {measured.error:.{digits}f}"
    return f"{measured.value:.{digits}f}{error}"

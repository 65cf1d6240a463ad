"""inspect.html: what `synth inspect` found on one page, which needs no other file."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from synth.base.files import write_text
from synth.quality.check import percent
from synth.quality.groups import Group
from synth.quality.kid import Measured

CSS = """
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 72rem; background: #fff;
  color: #1b1f27; font: 1rem/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; } h2 { margin: 2.5rem 0 .4rem; font-size: 1.2rem; }
p, li { max-width: 52rem; } .soft { color: #5d6675; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { color: #5d6675; font-weight: 500; }
th, td { padding: .35rem 1.2rem .35rem 0; text-align: right; border-bottom: 1px solid #dfe2e8; }
th { vertical-align: bottom; } td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { display: block; max-width: 100%; height: auto; margin-top: .6rem; }
"""
HEAD = (
    "Images", "Strength s", "Number", "Distance", "KID x 1000", "Unlike the product",
    "Near-copies", "Diversity",
)  # fmt: skip


class Picture(NamedTuple):
    """A picture with its heading and what is to be seen on it."""

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
    items = "".join(f"<li>{escape(finding)}</li>" for finding in findings)
    write_text(
        path,
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<ul>{items}</ul>\n{table(groups)}\n"
        + "".join(f'<p class="soft">{escape(note)}</p>\n' for note in notes)
        + "".join(figure(picture) for picture in pictures)
        + "</body>\n</html>\n",
    )


def table(groups: Sequence[Group]) -> str:
    """One line per group; nothing when there are none."""
    if not groups:
        return ""
    lines = "".join(f"<tr>{cells('td', row(group))}</tr>\n" for group in groups)
    head = f"<thead><tr>{cells('th', HEAD)}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>\n{lines}</tbody></table></div>'


def row(group: Group) -> tuple[str, ...]:
    """The figures of a group as text, in the order of HEAD."""
    return (
        group.name,
        "" if group.strength is None else f"{group.strength:.3g}",
        str(group.num_images),
        with_error(group.quality, 2),
        with_error(group.kid, 3, 1000),
        percent(group.share_far),
        percent(group.share_copies),
        "" if group.diversity is None else f"{group.diversity:.2f}",
    )


def with_error(measured: Measured | None, digits: int, factor: float = 1) -> str:
    """A value and its standard error, such as 1.52 ± 0.04; "too few" where there is none."""
    if measured is None:
        return "too few"
    error = "" if measured.error is None else f" ± {factor * measured.error:.{digits}f}"
    return f"{factor * measured.value:.{digits}f}{error}"


def cells(tag: str, texts: Sequence[str]) -> str:
    """Cells of a table's line."""
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)


def figure(picture: Picture) -> str:
    """A section with the picture itself within."""
    data = base64.b64encode(picture.path.read_bytes()).decode()
    return (
        f'<h2>{escape(picture.title)}</h2>\n<p class="soft">{escape(picture.caption)}</p>\n'
        f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">\n'
    )

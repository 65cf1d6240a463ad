"""Pieces of a page that needs no network, no script and no other file."""

from collections.abc import Iterable, Sequence
from html import escape

from detect.report.style import CSS

# Nothing is fetched, whatever a file name or a title holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Cell = str | tuple[str, str]
"""Text, and what stands small below it."""


def document(title: str, sections: Iterable[str]) -> str:
    """The whole page of sections, each HTML; empty ones are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def table(
    head: Sequence[str], rows: Iterable[Sequence[Cell]], numbers: set[int], own_row: int = -1
) -> str:
    """An HTML table. numbers: columns aligned to the right; own_row: the row in bold."""

    def line(cells: Sequence[Cell], tag: str) -> str:
        kinds = [' class="number"' if i in numbers else "" for i in range(len(cells))]
        return "".join(
            f"<{tag}{kind}>{_cell(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )

    def row(i: int, cells: Sequence[Cell]) -> str:
        own = ' class="own"' if i == own_row else ""
        return f"<tr{own}>{line(cells, 'td')}</tr>"

    body = "".join(row(i, cells) for i, cells in enumerate(rows))
    return (
        f'<div class="scroll"><table><thead><tr>{line(head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    value, below = map(escape, cell)
    return f"{value}<small>{below}</small>" if below else value


def section(title: str, body: str) -> str:
    """A section of HTML `body` under its heading."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def soft(text: str) -> str:
    """A paragraph that explains; empty text makes none."""
    return f'<p class="soft">{escape(text)}</p>' if text else ""


def finding_list(findings: Iterable[str], cautions: Iterable[str]) -> str:
    """What was found, a bullet each, and what to beware of, a box each."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in findings)
    boxes = "".join(f'<p class="warning">{escape(caution)}</p>' for caution in cautions)
    return f'<ul class="findings">{items}</ul>{boxes}'


def figure(svg: str, caption: str, kind: str = "") -> str:
    """A figure of SVG text with its caption."""
    return f'<figure class="{kind}">{svg}<figcaption>{escape(caption)}</figcaption></figure>'

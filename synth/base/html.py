"""Pieces of web pages that need no network and no other file, and can be read without a script."""

import base64
import hashlib
from collections.abc import Collection, Iterable, Sequence
from html import escape

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Nothing is fetched, whatever a file name or a title holds."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f5f6f8; --line: #dfe2e8; --ink: #1b1f27; --soft: #5d6675;
  --good: #2563eb; --bad: #c2410c; --warn: #fff4e0; --warn-line: #f0b45a;
}
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171c; --panel: #1d2128; --line: #323843; --ink: #e8eaee; --soft: #9da6b5;
  --good: #7fb0ff; --bad: #ffa366; --warn: #33270f; --warn-line: #8a6420;
} }
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 70rem;
  background: var(--paper); color: var(--ink); font-variant-numeric: tabular-nums;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 3rem 0 0.75rem; font-size: 1.3rem; }
h3 { margin: 1.75rem 0 0.5rem; font-size: 1.05rem; }
p { margin: 0.4rem 0; max-width: 46rem; }
.soft { color: var(--soft); }
.lead { margin: 0.4rem 0 1.75rem; color: var(--soft); }
.tiles { display: grid; gap: 0.9rem; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
.tile { padding: 0.9rem 1.1rem; border-radius: 0.6rem; background: var(--panel); }
.tile b { display: block; font-size: 1.75rem; line-height: 1.25; font-weight: 650; }
.tile span { color: var(--soft); font-size: 0.9rem; }
ul { margin: 1.5rem 0 0; padding-left: 1.15rem; max-width: 50rem; }
li { margin: 0.4rem 0; }
.warning {
  margin: 1.25rem 0; padding: 0.7rem 1.1rem; max-width: 50rem;
  border: 1px solid var(--warn-line); border-radius: 0.6rem; background: var(--warn);
}
.scroll { overflow-x: auto; }
.scroll + p { margin-top: 0.9rem; }
table { border-collapse: collapse; min-width: 50%; font-size: 0.95rem; }
th, td { padding: 0.42rem 1.4rem 0.42rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
tr { border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
td small { display: block; color: var(--soft); font-size: 0.78rem; font-weight: 400; }
tr.own td { font-weight: 650; }
.figures {
  display: grid; gap: 1.5rem; margin-top: 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
}
figure { margin: 0; }
figure.wide { margin-top: 1.5rem; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
figure svg text { font-family: inherit !important; }
.strip { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
.strip figure { padding: 0.2rem; border-radius: 0.4rem; }
.strip .shown { background: var(--line); }
.strip img, .large img { width: 100%; image-rendering: pixelated; }
.strip figcaption {
  font-size: 0.8rem; line-height: 1.3; white-space: pre-line; text-align: center;
}
.large { max-width: 28rem; }
.scrub input {
  display: block; height: 1rem; margin: 0.9rem auto 0.4rem;
  width: calc(100% - 100% / var(--columns) + 1rem);
}
[hidden] { display: none !important; }
figcaption { margin-top: 0.35rem; color: var(--soft); font-size: 0.9rem; }
img { display: block; max-width: 100%; height: auto; border-radius: 0.3rem; }
.examples {
  display: grid; gap: 1.1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr));
}
.example { padding: 0.8rem; border-radius: 0.6rem; background: var(--panel); }
.example .row { display: grid; gap: 0.4rem; grid-template-columns: repeat(3, 1fr); }
.example img { width: 100%; }
.example figcaption { display: flex; flex-wrap: wrap; gap: 0.1rem 0.9rem; margin-top: 0.55rem; }
.example .name { color: var(--ink); overflow-wrap: anywhere; }
.example .verdict { margin-left: auto; font-weight: 600; }
.reject { color: var(--bad); }
.pass { color: var(--good); }
.scale { display: flex; align-items: center; gap: 0.7rem; margin: 0.8rem 0; font-size: 0.9rem; }
.scale i { flex: 0 1 16rem; height: 0.75rem; border-radius: 0.2rem; }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  th, td { padding-right: 0.9rem; }
  th { white-space: normal; }
  td:first-child { min-width: 7rem; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .strip figcaption { font-size: 0.65rem; }
  figure.wide { overflow-x: auto; }
  figure.wide svg { min-width: 36rem; }
}
@media print { body { max-width: none; } .example, figure { break-inside: avoid; } }
"""
"""System fonts, light and dark, one column on a phone."""

Cell = str | tuple[str, str]
"""Text, or text and a smaller line below it."""


def document(title: str, sections: Iterable[str], script: str = "") -> str:
    """The whole page; sections are HTML, empty ones are left out. No other script can run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"{POLICY}; script-src 'sha256-{digest}'" if script else POLICY
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + (f"\n<script>{script}</script>" if script else "")
        + "\n</body>\n</html>\n"
    )


def section(title: str, content: str, note: str = "") -> str:
    """A heading, a note in plain text and HTML content; empty without content."""
    about = paragraphs([note] if note else ())
    return f"<section><h2>{escape(title)}</h2>{about}{content}</section>" if content else ""


def bullets(sentences: Iterable[str]) -> str:
    """A list of plain sentences."""
    return f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in sentences)}</ul>"


def paragraphs(texts: Iterable[str], kind: str = "soft") -> str:
    """A paragraph for each plain text. kind: a class of the style sheet."""
    return "".join(f'<p class="{kind}">{escape(text)}</p>' for text in texts)


def soft(text: str) -> str:
    """A paragraph that explains; empty text makes none."""
    return paragraphs([text] if text else ())


def finding_list(findings: Iterable[str], cautions: Iterable[str]) -> str:
    """What was found, a bullet each, and what to beware of, a box each."""
    return bullets(findings) + paragraphs(cautions, "warning")


def table(
    head: Sequence[str], rows: Iterable[Sequence[Cell]], numbers: Collection[int], own_row: int = -1
) -> str:
    """A table of plain text. numbers: the columns aligned right; own_row: the row in bold."""

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


def figure(content: str, caption: str, kind: str = "") -> str:
    """A figure (SVG or HTML) with a plain caption."""
    return f'<figure class="{kind}">{content}<figcaption>{escape(caption)}</figcaption></figure>'


def embedded_image(data: bytes, kind: str, alt: str) -> str:
    """An image inside the page. kind: "png" or "webp"; alt: what it shows, in words."""
    address = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<img src="{address}" alt="{escape(alt)}">'

"""A grid's table as Markdown, CSV and one HTML page with a plot."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from detect.evaluation.report_data import COLUMNS
from detect.grid.cells import Cost
from detect.grid.plot import plot_png, plot_svg
from detect.grid.table import Table, metric
from detect.grid.text import COST_NOTE, COSTS, HEADLINES, plus_minus, signed, told_from_chance
from detect.report.html import Cell, document, figure, table
from synth.base.files import atomic_path, write_text

ABOUT_ROWS = "Mean ± sample standard deviation over seeds."


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is shown of a grid. differences: whether the first entry is what others differ from."""

    title: str
    table: Table
    findings: Sequence[str]
    notes: Sequence[str]
    protocol: Mapping[str, str]
    differences: bool


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table with its heading, for Markdown and HTML alike; the first column holds names."""

    title: str
    note: str = ""
    head: Sequence[str]
    rows: list[list[str]]
    of_numbers: bool = True

    def markdown(self) -> str:
        """As a Markdown section."""
        lines = [
            self.head,
            ["---"] + ["---:" if self.of_numbers else "---"] * (len(self.head) - 1),
            *self.rows,
        ]
        cells = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in line] for line in lines]
        text = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        note = f"{self.note}\n\n" if self.note else ""
        return f"## {self.title}\n\n{note}{text}\n"

    def html(self) -> str:
        """As an HTML section."""
        rows: list[list[Cell]] = [[split(cell) for cell in row] for row in self.rows]
        note = f'<p class="soft">{escape(self.note)}</p>' if self.note else ""
        return (
            f"<section><h2>{escape(self.title)}</h2>{note}"
            + table(self.head, rows, set(range(1, len(self.head)) if self.of_numbers else ()))
            + "</section>"
        )


def split(cell: str) -> Cell:
    """A spread stands small below its mean."""
    value, sign, deviation = cell.partition(" ± ")
    return (value, f"± {deviation}") if sign else cell


def sections(page: Page) -> list[Section]:
    """All tables of a grid."""
    grid = page.table
    means = [
        [name, *(plus_minus(grid.metric(name, column)) for column in grid.columns)]
        for name in grid.entries
    ]
    over = f" Means over {len(grid.categories)} categories." if len(grid.categories) > 1 else ""
    head = ("", *grid.columns)
    found = [Section(title="Metrics", note=ABOUT_ROWS + over, head=head, rows=means)]
    if page.differences and len(grid.entries) > 1:
        found.append(differences_section(grid))
    if len(grid.categories) > 1:
        found += [by_category(grid, column) for column in HEADLINES if column in grid.columns]
    costs = [
        [name, *(write(grid.cost(name, read)) for read, write in COSTS.values())]
        for name in grid.entries
    ]
    found.append(Section(title="Cost", note=COST_NOTE, head=("", *COSTS), rows=costs))
    facts = [[name, fact] for name, fact in page.protocol.items()]
    head = ("Fact", "Value")
    return [*found, Section(title="Protocol", head=head, rows=facts, of_numbers=False)]


def differences_section(grid: Table) -> Section:
    """What the other entries have more than the first, with a star where it is told from chance."""
    is_told = told_from_chance(grid)

    def shown(name: str, column: str) -> str:
        star = "*" if is_told.get((name, column)) else ""
        return star + signed(grid.difference(name, column))

    rows = [[name, *(shown(name, column) for column in grid.columns)] for name in grid.entries[1:]]
    return Section(
        title=f"Differences to {grid.entries[0]}",
        note="Paired by seed: mean ± sample standard deviation of the differences. * Told from "
        f"chance; only {' and '.join(HEADLINES)} are judged.",
        head=("", *grid.columns),
        rows=rows,
    )


def by_category(grid: Table, column: str) -> Section:
    """One metric, a row per category."""
    rows = [
        [category, *(plus_minus(grid.metric(name, column, category)) for name in grid.entries)]
        for category in grid.categories
    ]
    rows.append(["mean", *(plus_minus(grid.metric(name, column)) for name in grid.entries)])
    head = ("", *grid.entries)
    return Section(title=f"{column} by category", note=ABOUT_ROWS, head=head, rows=rows)


def write_page(out: Path, name: str, page: Page) -> Path:
    """Write <name>.md, .csv, .html and .png into `out`; returns the HTML file."""
    parts = sections(page)
    write_text(
        out / f"{name}.html",
        render_html(page, parts, plot_svg(page.table, mark_first=page.differences)),
    )
    with atomic_path(out / f"{name}.png") as partial:
        partial.write_bytes(plot_png(page.table, mark_first=page.differences))
    write_text(out / f"{name}.md", render_markdown(page, parts, name))
    write_text(out / f"{name}.csv", render_csv(page.table))
    return out / f"{name}.html"


def render_markdown(page: Page, parts: Sequence[Section], name: str) -> str:
    """The whole page as Markdown."""
    findings = "\n".join(f"- {sentence}" for sentence in page.findings)
    notes = "\n\n".join(page.notes)
    head = f"# {page.title}\n\n{findings}\n\n{notes}\n\n![{page.title}]({name}.png)\n"
    return "\n".join([head, *(part.markdown() for part in parts)])


def render_html(page: Page, parts: Sequence[Section], svg: str) -> str:
    """The whole page as HTML."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in page.findings)
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in page.notes)
    header = f"<header><h1>{escape(page.title)}</h1></header>"
    found = f'<ul class="findings">{items}</ul>{notes}'
    caption = "Each dot is a training; the line is the mean over seeds."
    return document(
        page.title, [header, found, figure(svg, caption, "wide"), *(part.html() for part in parts)]
    )


def render_csv(grid: Table) -> str:
    """A row per training, all digits: entry, category, seed, metrics, costs, device."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["entry", "category", "seed", *COLUMNS, *Cost._fields, "device"])
    for row in grid.results:
        values = [metric(row, column) for column in COLUMNS]
        writer.writerow([row.entry, row.category, row.seed, *values, *row.cost, row.device])
    return text.getvalue()

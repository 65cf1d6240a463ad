"""A grid's page: one table of all trainings, as HTML with a plot, Markdown and CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from html import escape
from importlib.metadata import version

from detect.config import TrainedConfig
from detect.data.sources import open_source
from detect.evaluation.protocol import source_facts, weights_facts
from detect.evaluation.report_data import COLUMNS
from detect.evaluation.text import duration, number, plus_minus, signed
from detect.grid.plan import Plan
from detect.grid.result import Cost, Result
from detect.grid.table import ALPHA, Table, metric
from detect.report.plots import grid_png, grid_svg
from synth.base.files import atomic_path, write_text
from synth.base.html import Cell, document, figure, finding_list, section, soft, table

NAME = "benchmark"
"""Of the files: benchmark.html and its like."""
SPREADS = "Mean ± sample standard deviation over seeds."
COSTS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "training": ("training_seconds", duration),
    "training memory": ("training_bytes", lambda value: f"{value / 2**20:,.0f} MiB"),
    "latency": ("latency_ms", lambda value: f"{value:.1f} ms"),
}
"""Columns of costs: the field of `Cost` and how to write it."""
COST_NOTE = (
    "Means over all trainings. Training: from loaded images to the saved detector, if it was not "
    "interrupted. Training memory: how far the memory of the GPU, or of the process without one, "
    "rises meanwhile. Latency: scoring one image that is in memory, fp32, median of 15."
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table with its heading, for Markdown and HTML alike; the first column holds names."""

    title: str
    note: str = ""
    head: Sequence[str]
    rows: list[list[str]]
    of_numbers: bool = True

    def markdown(self) -> str:
        """Render it as a Markdown section."""
        rule = ["---", *(["---:" if self.of_numbers else "---"] * (len(self.head) - 1))]
        cells = [
            [cell.replace("|", "\\|").replace("*", "\\*") for cell in line]
            for line in (self.head, rule, *self.rows)
        ]
        text = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        note = f"{self.note}\n\n" if self.note else ""
        return f"## {self.title}\n\n{note}{text}\n"

    def html(self) -> str:
        """Render it as an HTML section."""
        rows: list[list[Cell]] = [[split(cell) for cell in row] for row in self.rows]
        numbers = set(range(1, len(self.head)) if self.of_numbers else ())
        return section(self.title, soft(self.note) + table(self.head, rows, numbers))


def split(cell: str) -> Cell:
    """Put what follows a number below it, in small: its spread, or that it is exact."""
    number, space, rest = cell.partition(" ")
    return (number, rest.strip("()")) if space and rest.startswith(("±", "(")) else cell


def write_page(plan: Plan, results: Sequence[Result]) -> Table:
    """Write benchmark.html, .md, .csv and .png into the plan's folder; returns the table."""
    grid = Table(tuple(results))
    found, cautions = findings(grid), notes(grid)
    parts = [*sections(grid), protocol(plan, grid)]
    out = plan.out / NAME
    write_text(out.with_suffix(".html"), render_html(plan.title, grid, found, cautions, parts))
    with atomic_path(out.with_suffix(".png")) as partial:
        partial.write_bytes(grid_png(grid))
    head = f"# {plan.title}\n\n" + "".join(f"- {sentence}\n" for sentence in found)
    paragraphs = [head, *(f"{note}\n" for note in cautions), f"![{plan.title}]({NAME}.png)\n"]
    text = "\n".join([*paragraphs, *(part.markdown() for part in parts)])
    write_text(out.with_suffix(".md"), text)
    write_text(out.with_suffix(".csv"), render_csv(grid))
    return grid


def render_html(
    title: str, grid: Table, found: Sequence[str], cautions: Sequence[str], parts: Sequence[Section]
) -> str:
    """Render the whole page."""
    counts = [(len(grid.categories), "categories"), (len(grid.seeds), "seeds")]
    over = " and ".join(f"{count} {name}" for count, name in counts if count > 1)
    lead = f"{len(grid.results)} trainings" + (f", over {over}" if over else "")
    over = ", the mean over the categories" if len(grid.categories) > 1 else ""
    caption = f"Each dot is a seed{over}; the line is the mean over seeds."
    if len(grid.entries) > 1:
        caption += f" Orange: {grid.entries[0]}, which the others are compared with."
    body = [
        f'<header><h1>{escape(title)}</h1><p class="lead">{lead}</p></header>',
        finding_list(found, cautions),
        figure(grid_svg(grid), caption, "wide"),
        *(part.html() for part in parts),
    ]
    return document(title, body)


def render_csv(grid: Table) -> str:
    """A row per training, all digits: entry, category, seed, metrics, costs, device."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["entry", "category", "seed", *COLUMNS, *Cost._fields, "device"])
    for row in grid.results:
        values = [metric(row, column) for column in COLUMNS]
        writer.writerow([row.entry, row.category, row.seed, *values, *row.cost, row.device])
    return text.getvalue()


# Words


def findings(grid: Table) -> list[str]:
    """One sentence per headline metric on the best entries, and one on the differences."""
    sentences: list[str] = []
    for column in grid.headlines:
        means = {name: grid.over_seeds(name, column) for name in grid.entries}
        highest = max(means.values(), key=lambda spread: spread.mean)
        top = [name for name in means if number(means[name].mean) == number(highest.mean)]
        shown = plus_minus(highest) if len(top) == 1 else number(highest.mean)
        if len(grid.entries) == 1:
            sentences.append(f"Mean {column}: {shown}.")
        else:
            sentences.append(f"Highest mean {column}: {' and '.join(top)}, {shown}.")
            sentences.append(compared(grid, column))
    return sentences


def compared(grid: Table, column: str) -> str:
    """The differences of the later entries to the first one in a sentence, by their judgement."""
    first, judged = grid.entries[0], grid.judged()
    groups: dict[str, list[str]] = {"significant": [], "exact": [], "not significant": []}
    for name in grid.entries[1:]:
        gain = grid.difference(name, column)
        kind = judged[name, column]
        shown = f"{gain.mean:+.3f}" if kind == "exact" else signed(gain)
        groups[kind].append(f"{name} {shown}")
    facts = [f"{kind}: {', '.join(gains)}" for kind, gains in groups.items() if gains]
    own = plus_minus(grid.over_seeds(first, column))
    return f"Differences in {column} to {first}, {own}; {'; '.join(facts)}."


def notes(grid: Table) -> list[str]:
    """What a reader must know before trusting the figures; often nothing."""
    if len(grid.seeds) > 1 or len(grid.entries) == 1:
        return []
    return ["One seed: no difference can be called significant; give two or more --seeds."]


def about_differences(grid: Table) -> str:
    """How the differences are judged."""
    about = "Paired by seed: mean ± sample standard deviation of the differences."
    if len(grid.seeds) == 1:
        return about
    return (
        f"{about} Only those in {' and '.join(grid.headlines)} are judged. * is significant: by a "
        f"paired t-test over the {len(grid.seeds)} seeds (a sign-flip test where they all differ "
        f"alike), with Holm's correction for all of them; where nothing differs, at most one table "
        f"in {1 / ALPHA:.0f} has a star. With few seeds only large and steady differences get one; "
        "the others may still be real. A difference is exact where no seed changes either row: it "
        "needs no test."
    )


# Tables


def sections(grid: Table) -> list[Section]:
    """Metrics, differences, categories and costs."""
    means = [
        [name, *(plus_minus(grid.over_seeds(name, column)) for column in grid.columns)]
        for name in grid.entries
    ]
    note = f"{SPREADS} The test images and the anomaly images are the same for all seeds; other "
    note += "images would move the figures too."
    if len(grid.categories) > 1:
        note = f"Means over {len(grid.categories)} categories. {note}"
    found = [Section(title="Metrics", note=note, head=("", *grid.columns), rows=means)]
    if len(grid.entries) > 1:
        found.append(differences(grid))
    if len(grid.categories) > 1:
        found += [by_category(grid, column) for column in grid.headlines]
    costs = [
        [name, *("–" if (value := grid.cost(name, field)) is None else write(value)
                 for field, write in COSTS.values())]
        for name in grid.entries
    ]  # fmt: skip
    return [*found, Section(title="Cost", note=COST_NOTE, head=("", *COSTS), rows=costs)]


def differences(grid: Table) -> Section:
    """How much more the later entries have than the first one, and how that is judged."""
    judged = grid.judged()

    def shown(name: str, column: str) -> str:
        gain, kind = grid.difference(name, column), judged.get((name, column))
        if kind == "exact":
            return f"{gain.mean:+.3f} (exact)"
        return ("*" if kind == "significant" else "") + signed(gain)

    rows = [[name, *(shown(name, column) for column in grid.columns)] for name in grid.entries[1:]]
    return Section(
        title=f"Differences to {grid.entries[0]}",
        note=about_differences(grid),
        head=("", *grid.columns),
        rows=rows,
    )


def by_category(grid: Table, column: str) -> Section:
    """One metric, a row per category."""
    rows = [
        [category, *(plus_minus(grid.over_seeds(name, column, category)) for name in grid.entries)]
        for category in grid.categories
    ]
    rows.append(["mean", *(plus_minus(grid.over_seeds(name, column)) for name in grid.entries)])
    title = f"{column[:1].upper()}{column[1:]} by category"
    return Section(title=title, note=SPREADS, head=("", *grid.entries), rows=rows)


def protocol(plan: Plan, grid: Table) -> Section:
    """The facts that the figures need beside them."""
    num_train = sum(len(category.train) for category in plan.categories)
    num_test = sum(len(category.test) for category in plan.categories)
    names = ", ".join(category.name for category in plan.categories)
    options = plan.entries[0].options
    facts = {
        "Data": f"{plan.categories[0].dataset}: {names}",
        "Images": f"{num_train} normal images to train on and to set thresholds with; {num_test} "
        "test images, which chose nothing",
    }
    for entry in plan.entries:
        method = entry.options.row
        config = method.recipe().configure(entry.options)
        facts[entry.name] = f"{method.title} {entry.options.preset}, {config.facts}"
        if isinstance(config, TrainedConfig):
            facts[entry.name] += f", {weights_facts(config.averages, options.patience)}"
        if entry.parts:
            source = open_source(entry.parts, plan.categories[0]).config
            facts[entry.name] += f"; {source_facts(source)}"
    facts |= {
        "Seeds": ", ".join(map(str, grid.seeds)),
        "Arithmetic": f"training {options.precision}, scoring fp32",
        "Device": ", ".join(sorted({result.device for result in grid.results})),
        "Versions": f"siaforge {version('siaforge')}, torch {version('torch')}",
        "Date": date.today().isoformat(),
    }
    rows = [[name, fact] for name, fact in facts.items()]
    return Section(title="Protocol", head=("Fact", "Value"), rows=rows, of_numbers=False)

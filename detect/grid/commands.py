"""A grid from what was typed to its page."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

from detect.evaluation.protocol import source_facts, weights_facts
from detect.grid.methods import METHODS
from detect.grid.plan import Entry, Plan, Study, make_plan
from detect.grid.run import run_grid
from detect.grid.table import Table
from detect.grid.text import best, differences, notes, one_seed
from detect.methods.realnet.config import PRESETS
from detect.options import TrainOptions
from detect.report.grid import Page, write_page
from detect.training.source_words import parse_named
from detect.training.sources import Part, open_source
from synth.base.errors import UserError
from synth.base.progress import Bars
from synth.data.catalog import Category


def check_grid(options: TrainOptions, seeds: Sequence[int]) -> None:
    """Raise UserError for options out of range and for seeds that are none, negative or twice."""
    options.check()
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: got {seeds}; give one or more different ones, 0 or more each")
    if options.seed != TrainOptions().seed:
        raise UserError(f"--seed: got {options.seed}, not used here; give --seeds")


def source_entries(words: Sequence[str], options: TrainOptions) -> list[Entry]:
    """A row for every source, from words as `parse_named` reads them.

    Raises UserError as that, and for less than two.
    """
    sources = parse_named(words)
    if len(sources) < 2:
        raise UserError(f"--sources: got {len(sources)}; give two or more to compare")
    return [Entry(name, options.method, options, parts) for name, parts in sources.items()]


def method_entries(
    words: Sequence[str], options: TrainOptions, parts: Sequence[Part]
) -> list[Entry]:
    """A row for every method, from words METHOD or METHOD:PRESET.

    Raises UserError for an unknown or repeated one.
    """
    if len(set(words)) < len(words) or not words:
        raise UserError(f"--methods: got {' '.join(words)}; give one or more different ones")
    return [method_entry(word, options, parts) for word in words]


def method_entry(word: str, options: TrainOptions, parts: Sequence[Part]) -> Entry:
    """`realnet:small` as a row of the table."""
    method, _, preset = word.partition(":")
    if method not in METHODS:
        raise UserError(f"--methods: no {method!r}; allowed: {', '.join(METHODS)}")
    if preset and preset not in PRESETS:
        raise UserError(f"--methods: no preset {preset!r}; allowed: {', '.join(PRESETS)}")
    chosen = replace(options, preset=preset) if preset else options
    return Entry(word, method, chosen, tuple(parts) if METHODS[method].takes_source else ())


def comparison(
    category: Category, entries: Sequence[Entry], seeds: Sequence[int], out: Path
) -> Plan:
    """Plan to train on every source, into comparison.html and its like. Raises as `make_plan`."""
    title = f"Anomaly sources on {category.name}"
    study = Study("comparison", title, differences, notes, differences=True)
    return make_plan(study, [category], entries, seeds, out)


def benchmark(
    categories: Sequence[Category], entries: Sequence[Entry], seeds: Sequence[int], out: Path
) -> Plan:
    """Plan to train every method on every category, into benchmark.html and its like.

    Raises as `make_plan`.
    """
    title = f"Benchmark on {categories[0].dataset}"
    study = Study("benchmark", title, best, one_seed, differences=False)
    return make_plan(study, categories, entries, seeds, out)


def carry_out(plan: Plan, bars: Bars) -> Page | None:
    """Train what is left and write the page and its like; None in further processes of a launch.

    Raises UserError as `run_grid`.
    """
    results = run_grid(plan, bars)
    if not plan.is_main:
        return None
    table, study = Table(tuple(results)), plan.study
    page = Page(
        title=study.title,
        table=table,
        findings=study.findings(table),
        notes=study.notes(table),
        protocol=protocol(plan.categories, plan.entries, table),
        differences=study.differences,
    )
    write_page(plan.out, study.name, page)
    return page


def protocol(
    categories: Sequence[Category], entries: Sequence[Entry], table: Table
) -> dict[str, str]:
    """The facts that the figures need beside them."""
    num_train = sum(len(category.train) for category in categories)
    num_test = sum(len(category.test) for category in categories)
    names = ", ".join(category.name for category in categories)
    options = entries[0].options
    facts = {
        "Data": f"{categories[0].dataset}: {names}",
        "Images": f"{num_train} normal ones to train on and to set thresholds with; {num_test} to "
        "test, read for the figures only: they chose nothing",
    }
    if any(entry.method == "realnet" for entry in entries):
        facts["RealNet"] = weights_facts(options.official, options.patience)
    for entry in entries:
        source = open_source(entry.parts, categories[0]).config  # of the first category
        facts[entry.name] = METHODS[entry.method].facts(entry.options)
        if entry.parts:
            facts[entry.name] += f"; {source_facts(source)}"
    return facts | {
        "Seeds": ", ".join(map(str, table.seeds)),
        "Arithmetic": f"training {options.precision}, scoring fp32",
        "Device": ", ".join(sorted({result.device for result in table.results})),
        "Versions": f"siaforge {version('siaforge')}, torch {version('torch')}",
        "Date": date.today().isoformat(),
    }

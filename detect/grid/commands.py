"""A grid from what was typed to its page."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

from detect.evaluation.protocol import source_facts, weights_facts
from detect.grid.methods import METHODS
from detect.grid.page import Page, write_page
from detect.grid.run import Entry, run_grid, shared_options
from detect.grid.tables import Table
from detect.grid.text import ONE_SEED, best, differences, notes
from detect.options import TrainOptions
from detect.realnet.config import PRESETS
from detect.training.source_words import parse_named
from detect.training.sources import Part, open_source
from synth.data.catalog import Category
from synth.errors import UserError
from synth.progress import Bars


def check_grid(options: TrainOptions, seeds: Sequence[int]) -> None:
    """Raise UserError for options out of range and for seeds that are none, negative or twice."""
    options.check()
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: got {seeds}; give one or more different ones, 0 or more each")
    if options.seed != TrainOptions().seed:
        raise UserError(f"--seed: got {options.seed}, not used here; give --seeds")


def compared(
    category: Category,
    options: TrainOptions,
    words: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    bars: Bars,
) -> Page | None:
    """Train on every source, write comparison.html and its like into `out`.

    words: sources as `parse_named` reads them. None in the further processes of a launch. Raises
    UserError as `run_grid`.
    """
    sources = parse_named(words)
    if len(sources) < 2:
        raise UserError(f"--sources: got {len(sources)}; give two or more to compare")
    options, is_main = shared_options(options, out)
    entries = [Entry(name, options.method, options, parts) for name, parts in sources.items()]
    results = run_grid([category], entries, seeds, out, bars, is_main=is_main)
    if not is_main:
        return None
    table = Table(tuple(results))
    page = Page(
        title=f"Anomaly sources on {category.name}",
        table=table,
        findings=differences(table),
        notes=notes(table),
        protocol=protocol([category], entries, table),
        differences=True,
    )
    write_page(out, "comparison", page)
    return page


def benchmarked(
    categories: Sequence[Category],
    methods: Sequence[str],
    options: TrainOptions,
    parts: Sequence[Part],
    seeds: Sequence[int],
    out: Path,
    bars: Bars,
) -> Page | None:
    """Train every method on every category, write benchmark.html and its like into `out`.

    methods: METHOD or METHOD:PRESET each. None in the further processes of a launch. Raises
    UserError for an unknown or repeated one, and as `run_grid`.
    """
    options, is_main = shared_options(options, out)
    entries = [method_entry(word, options, parts) for word in methods]
    if len(set(methods)) < len(methods) or not methods:
        raise UserError(f"--methods: got {' '.join(methods)}; give one or more different ones")
    results = run_grid(categories, entries, seeds, out, bars, is_main=is_main)
    if not is_main:
        return None
    table = Table(tuple(results))
    page = Page(
        title=f"Benchmark on {categories[0].dataset}",
        table=table,
        findings=best(table),
        notes=[ONE_SEED] if len(seeds) == 1 else [],
        protocol=protocol(categories, entries, table),
        differences=False,
    )
    write_page(out, "benchmark", page)
    return page


def method_entry(word: str, options: TrainOptions, parts: Sequence[Part]) -> Entry:
    """`realnet:small` as a row of the table."""
    method, _, preset = word.partition(":")
    if method not in METHODS:
        raise UserError(f"--methods: no {method!r}; allowed: {', '.join(METHODS)}")
    if preset and preset not in PRESETS:
        raise UserError(f"--methods: no preset {preset!r}; allowed: {', '.join(PRESETS)}")
    chosen = replace(options, preset=preset) if preset else options
    return Entry(word, method, chosen, tuple(parts) if METHODS[method].takes_source else ())


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
        "RealNet": weights_facts(options.official, options.patience),
    }
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

"""The cells of a grid, checked before anything is written: what is done, and what is left."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from detect.evaluation.testset import require_both_labels
from detect.grid.cells import Result, cell_folder, data_facts, read_result, safe_name
from detect.grid.methods import METHODS
from detect.grid.table import Table
from detect.options import TrainOptions
from detect.training.sources import OpenSource, Part, open_source
from synth.base.device import make_accelerator
from synth.base.errors import DataWarning, UserError
from synth.base.files import config_differences, read_json, write_json
from synth.base.options import Precision
from synth.data.catalog import Category

GRID_FILE = "grid.json"


class Entry(NamedTuple):
    """A row of the table: a method with its options and, where it takes one, its source."""

    name: str
    method: str
    options: TrainOptions
    parts: tuple[Part, ...] = ()


class Cell(NamedTuple):
    """One training to do. asked: all that its result depends on."""

    entry: Entry
    source: OpenSource
    options: TrainOptions
    folder: Path
    asked: dict[str, Any]


class Study(NamedTuple):
    """What a grid is for: name of its files, title, and what is said of its table.

    differences: whether the first entry is what the others differ from.
    """

    name: str
    title: str
    findings: Callable[[Table], list[str]]
    notes: Callable[[Table], list[str]]
    differences: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A grid that can be carried out. found: each cell's result, None where it is not finished.

    about: what GRID_FILE is to hold. is_main: False in the further processes of a launch.
    """

    study: Study
    categories: Sequence[Category]
    entries: Sequence[Entry]
    out: Path
    cells: Mapping[Category, list[Cell]]
    found: Mapping[Category, list[Result | None]]
    about: Mapping[str, Any]
    is_main: bool

    def write(self) -> None:
        """Write GRID_FILE; entries of earlier grids in this folder stay in it."""
        write_json(self.out / GRID_FILE, self.about)


def make_plan(
    study: Study,
    categories: Sequence[Category],
    entries: Sequence[Entry],
    seeds: Sequence[int],
    out: Path,
) -> Plan:
    """Check a grid and find what of it is done; nothing is written.

    Raises UserError for options out of range, a category without both labels, a source that cannot
    be opened, a finished cell of other settings, and an entry that was trained as another detector.
    """
    detectors = {entry.name: detector_facts(entry) for entry in entries}
    for category in categories:
        require_both_labels(category)
    before = read_grid(out)
    precision, is_main = settled_precision(entries[0].options.precision, before)
    entries = [
        entry._replace(options=replace(entry.options, precision=precision)) for entry in entries
    ]
    grid = {category: cells(category, entries, seeds, out) for category in categories}
    found = {
        category: [read_result(cell.folder, cell.asked) for cell in row]
        for category, row in grid.items()
    }
    require_same(before, detectors, out)
    about = {
        "siaforge": version("siaforge"),
        "precision": precision,
        "entries": {**before.get("entries", {}), **detectors},
    }
    return Plan(
        study=study,
        categories=categories,
        entries=entries,
        out=out,
        cells=grid,
        found=found,
        about=about,
        is_main=is_main,
    )


def detector_facts(entry: Entry) -> dict[str, Any]:
    """All that defines an entry's detectors but for the data and the seed, as JSON values."""
    config = METHODS[entry.method].config(entry.options).to_json()
    config.pop("seed")
    config["backbone"].pop("seed")
    return json.loads(json.dumps({"method": entry.method, **config}))


def read_grid(out: Path) -> Mapping[str, Any]:
    """What GRID_FILE holds; nothing where there is none. Raises UserError when it is damaged.

    An older one holds the precision alone.
    """
    path = out / GRID_FILE
    if not path.exists():
        return {}
    cure = "delete this file and run the same command again"
    match read_json(path, cure):
        case {"precision": "fp32" | "bf16", "entries": {**entries}} as about if all(
            isinstance(entry, dict) for entry in entries.values()
        ):
            return about
        case {"precision": "fp32" | "bf16"} as about if "entries" not in about:
            return about
        case _:
            raise UserError(f"{path}: damaged (no precision, or no entries); {cure}")


def require_same(before: Mapping[str, Any], wanted: Mapping[str, Any], out: Path) -> None:
    """Raise UserError where an entry has been begun as another detector, as of another preset."""
    recorded = before.get("entries", {})
    for name, detector in wanted.items():
        folder = out / safe_name(name)
        begun = name in recorded and any(folder.rglob("*.safetensors"))
        differences = config_differences(recorded[name], detector) if begun else []
        if differences:
            raise UserError(
                f"{folder}: begun as another detector ({'; '.join(differences)}), "
                f"by siaforge {before.get('siaforge')}; give the options that make the same one, "
                "or another --out"
            )


def settled_precision(asked: Precision, before: Mapping[str, Any]) -> tuple[Precision, bool]:
    """Settle one arithmetic for the whole grid; and whether this process is the first.

    "auto" is measured once: two measurements could differ between cells.
    """
    if asked == "auto":
        asked = before.get("precision", asked)
    accelerator = make_accelerator(asked)
    precision: Precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    return precision, accelerator.is_main_process


def cells(
    category: Category, entries: Sequence[Entry], seeds: Sequence[int], out: Path
) -> list[Cell]:
    """The cells of a category; a source's are together, so that it is loaded once."""
    facts = data_facts(category)
    found: list[Cell] = []
    for entry in entries:
        source = open_source(entry.parts, category)
        for other in source.other_categories(category.name):
            warnings.warn(
                f"{entry.name}: anomaly images of category {other}, the normal images are of "
                f"{category.name}",
                DataWarning,
                stacklevel=2,
            )
        for seed in seeds:
            options = replace(entry.options, seed=seed)
            asked = {
                "method": entry.method,
                "options": chosen(options),
                "source": source.config,
                "data": facts,
            }
            folder = cell_folder(out, entry.name, category.name, seed)
            found.append(Cell(entry, source, options, folder, asked))
    return found


def chosen(options: TrainOptions) -> dict[str, Any]:
    """The options that are not as they are by default; GRID_FILE has all that they make."""
    default = asdict(TrainOptions())
    return {
        name: value
        for name, value in asdict(options).items()
        if name != "workers" and value != default[name]
    }

"""The trainings of a grid, checked before anything is written: what is done, and what is left."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from detect.checkpoint import CONFIG_FILE
from detect.data.defects import require_unseen
from detect.data.source_words import parse_named
from detect.data.sources import OpenSource, Part, open_source
from detect.evaluation.testset import listing_digest, require_both_labels
from detect.grid.result import Result, read_result, safe_name, training_folder
from detect.options import TrainOptions
from synth.base.device import make_accelerator
from synth.base.errors import DataWarning, UserError
from synth.base.files import DAMAGE, Json, config_differences, read_json, write_json
from synth.base.options import Precision, option_name
from synth.data.catalog import Category

GRID_FILE = "grid.json"
MANY = 3
"""More categories than these are not named in a title."""


class GridEntry(NamedTuple):
    """A row of the table: a method's options and, if it trains on anomalies, its source."""

    name: str
    options: TrainOptions
    parts: tuple[Part, ...] = ()


class Trial(NamedTuple):
    """One training of a grid. asked: everything that its result depends on.

    result: None until it is finished.
    """

    entry: GridEntry
    category: Category
    source: OpenSource
    options: TrainOptions
    folder: Path
    asked: Json
    result: Result | None = None

    @property
    def state(self) -> str:
        """In one word."""
        if self.result is not None:
            return "done"
        return "begun" if (self.folder / CONFIG_FILE).exists() else "left"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A grid that can be carried out.

    trials: by category, then entry, then seed. about: what GRID_FILE is to hold. is_main: False in
    the further processes of a launch.
    """

    categories: Sequence[Category]
    entries: Sequence[GridEntry]
    out: Path
    trials: Sequence[Trial]
    about: Mapping[str, Any]
    is_main: bool

    @property
    def title(self) -> str:
        """What is measured on what."""
        names = [category.name for category in self.categories]
        many = f"{len(names)} categories of {self.categories[0].dataset}"
        return f"Benchmark on {', '.join(names) if len(names) <= MANY else many}"

    def write(self) -> None:
        """Write GRID_FILE; entries of earlier grids in this folder stay in it."""
        write_json(self.out / GRID_FILE, self.about)


def check_seeds(options: TrainOptions, seeds: Sequence[int]) -> None:
    """Raise UserError for missing, negative or repeated seeds, and for --seed."""
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds: got {seeds}; give one or more different ones, 0 or more each")
    if options.seed != TrainOptions().seed:
        raise UserError(f"--seed: got {options.seed}, not used here; give --seeds")


# The rows


def make_entries(
    methods: Sequence[str], sources: Sequence[str], options: TrainOptions
) -> list[GridEntry]:
    """Make a row for every method and every source that it can train on.

    methods: METHOD or METHOD:PRESET; sources: as `parse_named` reads them. A row is named by what
    sets it apart: its method, its source, or both. Raises UserError for options out of range, a
    repeated method, missing sources, and options that no method uses.
    """
    if not methods or len(set(methods)) < len(methods):
        raise UserError(f"--methods: got {' '.join(methods)}; give one or more different ones")
    named = parse_named(sources)
    chosen = {word: chosen_method(word, options) for word in methods}
    users = [word for word, own in chosen.items() if own.row.needs_anomalies]
    if users and not named:
        raise UserError(
            f"--sources: none given, but {users[0]} trains on anomalies; give the SIA folder that "
            "`synth generate` made, textures:FOLDER, noise or cutpaste"
        )
    unused = [own.unused(sources=bool(named) and not users) for own in chosen.values()]
    for name in unused[0]:
        if all(name in names for names in unused):
            raise UserError(f"{option_name(name)}: not used by {', '.join(methods)}; leave it out")
    entries: list[GridEntry] = []
    for word, own in chosen.items():
        if word not in users:
            entries.append(GridEntry(word, own))
            continue
        for source, parts in named.items():
            label = source if len(methods) == 1 else f"{word}-on-{source}"
            entries.append(GridEntry(label if len(named) > 1 else word, own, parts))
    return entries


def chosen_method(word: str, options: TrainOptions) -> TrainOptions:
    """Read METHOD or METHOD:PRESET. Raises UserError for what is unknown or out of range."""
    method, _, preset = word.partition(":")
    own = replace(options, method=method, preset=preset or options.preset)
    own.check()
    return own


# The trainings


def make_plan(
    categories: Sequence[Category], entries: Sequence[GridEntry], seeds: Sequence[int], out: Path
) -> Plan:
    """Check a grid and find which trainings are done; nothing is written.

    Raises UserError for a category without both labels, a source that cannot be opened, a finished
    training of other settings, and an entry that was begun as another detector.
    """
    for category in categories:
        require_both_labels(category)
    before = read_grid(out)
    precision, is_main = settled_precision(entries[0].options.precision, before)
    entries = [
        entry._replace(options=replace(entry.options, precision=precision)) for entry in entries
    ]
    trials = [
        trial
        for category in categories
        for entry in entries
        for trial in make_trials(category, entry, seeds, out)
    ]
    detectors = {
        entry.name: same_detector(entry, before.get("entries", {}).get(entry.name), before, out)
        for entry in entries
    }
    about = {
        "siaforge": version("siaforge"),
        "precision": precision,
        "entries": {**before.get("entries", {}), **detectors},
    }
    return Plan(
        categories=categories,
        entries=entries,
        out=out,
        trials=trials,
        about=about,
        is_main=is_main,
    )


def make_trials(
    category: Category, entry: GridEntry, seeds: Sequence[int], out: Path
) -> list[Trial]:
    """The trainings of one entry on one category, with the results of those that are finished."""
    source = open_source(entry.parts, category)
    require_unseen(source.photographs, category)
    for other in source.other_categories(category.name):
        warnings.warn(
            f"{entry.name}: anomaly images of category {other}, the normal images are of "
            f"{category.name}",
            DataWarning,
            stacklevel=2,
        )
    facts = {
        "dataset": category.dataset,
        "category": category.name,
        "num_train": len(category.train),
        "num_test": len(category.test),
        "files": listing_digest(category.records),
    }
    trials: list[Trial] = []
    for seed in seeds:
        options = replace(entry.options, seed=seed)
        asked = {
            "method": options.method,
            "options": changed_options(options),
            "source": source.config,
            "data": facts,
        }
        folder = training_folder(out, entry.name, category.name, seed)
        result = read_result(folder, asked)
        trials.append(Trial(entry, category, source, options, folder, asked, result))
    return trials


def changed_options(options: TrainOptions) -> Json:
    """The options that differ from their defaults; GRID_FILE holds everything they lead to."""
    default = asdict(TrainOptions())
    return {
        name: value
        for name, value in asdict(options).items()
        if name not in ("workers", "method") and value != default[name]
    }


def settled_precision(asked: Precision, before: Mapping[str, Any]) -> tuple[Precision, bool]:
    """Settle one arithmetic for the whole grid; say also whether this is the first process."""
    if asked == "auto":
        asked = before.get("precision", asked)
    accelerator = make_accelerator(asked)
    precision: Precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    return precision, accelerator.is_main_process


# What an earlier command recorded


def read_grid(out: Path) -> Mapping[str, Any]:
    """Read GRID_FILE; empty where there is none. Raises UserError when it is damaged.

    The oldest grids recorded the precision alone.
    """
    path = out / GRID_FILE
    if not path.exists():
        return {}
    cure = "delete this file and run the same command again"
    about = read_json(path, cure)
    entries = about.get("entries", {})
    if (
        about.get("precision") not in ("fp32", "bf16")
        or not isinstance(entries, dict)
        or not all(isinstance(entry, dict) for entry in entries.values())
    ):
        raise UserError(f"{path}: damaged (no precision, or no entries); {cure}")
    return about


def same_detector(
    entry: GridEntry, recorded: Json | None, before: Mapping[str, Any], out: Path
) -> Json:
    """All that defines an entry's detectors but the data and the seed, as JSON values.

    recorded: the same of an earlier command. It is compared as this version reads it, so that a
    newer field with its default value makes no difference. Raises UserError where the entry was
    begun as another detector, for example because a preset has changed.
    """
    config = entry.options.row.recipe().configure(entry.options)
    wanted = {"method": entry.options.method, **without_seeds(config.to_json())}
    folder = out / safe_name(entry.name)
    if recorded is None or not any(folder.rglob("*.safetensors")):
        return wanted
    method, fields = recorded.get("method"), {k: v for k, v in recorded.items() if k != "method"}
    try:
        known = {"method": method, **without_seeds(type(config).from_json(fields).to_json())}
    except DAMAGE:
        known = recorded  # of another method, or with fields that are gone
    differences = config_differences(known, wanted)
    if differences:
        raise UserError(
            f"{folder}: begun as another detector ({'; '.join(differences)}), "
            f"by siaforge {before.get('siaforge')}; give the options that make the same one, "
            "or another --out"
        )
    return wanted


def without_seeds(config: Json) -> Json:
    """A detector's configuration without its seeds, as JSON values."""
    config = json.loads(json.dumps(config))
    config.pop("seed")
    config["backbone"].pop("seed")
    return config

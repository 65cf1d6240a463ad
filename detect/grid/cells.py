"""One cell of a grid: a training with its own folder, and what was measured of it.

A cell is finished when its results.json exists; that file is all that tables are made of.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from detect.evaluation.metrics import ImageMetrics, PixelMetrics
from detect.evaluation.testset import listing_digest
from synth.base.errors import UserError
from synth.base.files import config_differences, read_json, write_json
from synth.data.catalog import Category

RESULTS_FILE = "results.json"
LONGEST_FOLDER = 100


class Cost(NamedTuple):
    """What a detector costs; None where it was not measured.

    training_seconds: of the steps, with the checks of --patience between them, or of the memory
    bank; without loading and measuring. num_parameters, num_trained: numbers in the saved detector,
    and those of them that were learnt. training_bytes: how far memory rose in training over what it
    was before, with all images loaded; a GPU's, or else the process's. latency_ms: to score one
    image that is in memory.
    """

    training_seconds: float | None
    num_parameters: int
    num_trained: int
    training_bytes: int | None
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured in a cell. device: where, in words."""

    entry: str
    category: str
    seed: int
    image: ImageMetrics
    pixel: PixelMetrics | None
    cost: Cost
    device: str


def cell_folder(out: Path, entry: str, category: str, seed: int) -> Path:
    """Where a cell lies: `out`/<entry>/<category>/seed-<n>; no character needs quoting."""
    return out / safe_name(entry) / safe_name(category) / f"seed-{seed}"


def safe_name(name: str) -> str:
    """A folder's name for any text; different texts have different ones."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[:LONGEST_FOLDER]
    if plain == name and not name.startswith("."):
        return name
    return f"{plain.lstrip('.')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def data_facts(category: Category) -> dict[str, Any]:
    """Which images a category has, by name and size, so that finished cells notice other data."""
    return {
        "dataset": category.dataset,
        "category": category.name,
        "num_train": len(category.train),
        "num_test": len(category.test),
        "files": listing_digest(category.records),
    }


def write_result(folder: Path, asked: Mapping[str, Any], result: Result) -> None:
    """Write results.json. asked: all that the result depends on, for `read_result`."""
    named = {
        "image": result.image._asdict(),
        "pixel": result.pixel and result.pixel._asdict(),
        "cost": result.cost._asdict(),
    }
    write_json(folder / RESULTS_FILE, {"asked": asked, **asdict(result), **named})


def read_result(folder: Path, asked: Mapping[str, Any]) -> Result | None:
    """What `write_result` wrote; None where nothing is.

    Raises UserError where it was made with something else than `asked`, and for a damaged file. An
    older one tells the peak of the whole process, whatever ran in it before: no cost of the cell.
    """
    path = folder / RESULTS_FILE
    if not path.exists():
        return None
    cure = "delete this file and run the same command again"
    data = read_json(path, cure)
    differences = config_differences(data.pop("asked", {}), json.loads(json.dumps(asked)))
    if differences:
        raise UserError(
            f"{folder}: made with other settings ({'; '.join(differences)}); give the same ones to "
            "continue, or another --out"
        )
    try:
        pixel, cost = data.pop("pixel"), data.pop("cost")
        if "peak_bytes" in cost:
            del cost["peak_bytes"]
            cost["training_bytes"] = None
        return Result(
            image=ImageMetrics(**data.pop("image")),
            pixel=None if pixel is None else PixelMetrics(**pixel),
            cost=Cost(**cost),
            **data,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); {cure}") from error

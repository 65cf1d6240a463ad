"""What was measured of one training of a grid, in the training's own folder.

A training is finished when its results.json exists; tables are made of these files alone.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from detect.evaluation.metrics import ImageMetrics, PixelMetrics
from synth.base.errors import UserError
from synth.base.files import config_differences, read_json, reading, write_json

RESULTS_FILE = "results.json"
LONGEST_FOLDER = 100


class Cost(NamedTuple):
    """What a training and its detector cost; None where it was not measured.

    training_seconds: from loaded images to the saved detector; None after an interruption.
    training_bytes: how far memory rose meanwhile, a GPU's or else the process's. latency_ms: to
    score one image that is in memory.
    """

    training_seconds: float | None
    training_bytes: int | None
    latency_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured of one training. device: what measured it, such as a GPU's name."""

    entry: str
    category: str
    seed: int
    image: ImageMetrics
    pixel: PixelMetrics | None
    cost: Cost
    device: str


def training_folder(out: Path, entry: str, category: str, seed: int) -> Path:
    """`out`/<entry>/<category>/seed-<n>; no character in it needs quoting."""
    return out / safe_name(entry) / safe_name(category) / f"seed-{seed}"


def safe_name(name: str) -> str:
    """Make a folder's name of any text; different texts get different names."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[:LONGEST_FOLDER]
    if plain == name and not name.startswith("."):
        return name
    return f"{plain.lstrip('.')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def write_result(folder: Path, asked: Mapping[str, Any], result: Result) -> None:
    """Write results.json. asked: everything that the result depends on, for `read_result`."""
    named = {
        "image": result.image._asdict(),
        "pixel": result.pixel and result.pixel._asdict(),
        "cost": result.cost._asdict(),
    }
    write_json(folder / RESULTS_FILE, {"asked": asked, **asdict(result), **named})


def read_result(folder: Path, asked: Mapping[str, Any]) -> Result | None:
    """Read what `write_result` wrote; None where there is no file yet.

    Raises UserError for a result of other settings than `asked`, and for a damaged file. Costs that
    an older file lacks are None; those that only an older file has are dropped.
    """
    path = folder / RESULTS_FILE
    if not path.exists():
        return None
    cure = "delete this file and run the same command again"
    data = read_json(path, cure)
    with reading(path, cure):
        differences = config_differences(data.pop("asked", {}), json.loads(json.dumps(asked)))
        if differences:
            raise UserError(
                f"{folder}: made with other settings ({'; '.join(differences)}); give the same "
                "ones to continue, or another --out"
            )
        image, pixel, cost = data.pop("image"), data.pop("pixel"), data.pop("cost")
        return Result(
            image=ImageMetrics(**image),
            pixel=None if pixel is None else PixelMetrics(**pixel),
            cost=Cost(*(cost.get(name) for name in Cost._fields)),
            **data,
        )

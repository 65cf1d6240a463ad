"""What lies below a folder: detectors, predictions, diffusion models, SIA folders."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from detect.checkpoint import CALIBRATION_FILE
from detect.prediction.log import LOG_FILE
from detect.prediction.run import CONFIG_FILE as PREDICTION_FILE
from synth.diffusion.model import WEIGHTS_FILE
from synth.sia.format import HEADER_FILE, METADATA_FILE

Kind = Literal["detector", "prediction", "model", "sia"]
MARKS: dict[Kind, tuple[str, ...]] = {
    "detector": (CALIBRATION_FILE,),
    "prediction": (PREDICTION_FILE, LOG_FILE),
    "model": (WEIGHTS_FILE,),
    "sia": (HEADER_FILE, METADATA_FILE, "shards"),
}
"""Files of which one at least is in a folder of a kind; it may be broken all the same."""


class Found(NamedTuple):
    """The folders of each kind, by name."""

    detectors: list[Path]
    predictions: list[Path]
    models: list[Path]
    sia: list[Path]

    @property
    def summary(self) -> str:
        """How many of each, in a line."""
        return (
            f"detectors: {len(self.detectors)}, predictions: {len(self.predictions)}, "
            f"diffusion models: {len(self.models)}, SIA folders: {len(self.sia)}"
        )


def find(runs: Path) -> Found:
    """Search `runs` and what is below; no file is opened."""
    by_kind: dict[Kind, list[Path]] = {kind: [] for kind in MARKS}
    for kind, folder in walk(runs):
        by_kind[kind].append(folder)
    return Found(*map(sorted, by_kind.values()))


def walk(runs: Path) -> Iterator[tuple[Kind, Path]]:
    """Folders with the mark of a kind; nothing is looked for inside predictions and SIA folders."""
    for parent, folders, _ in os.walk(runs):
        path = Path(parent)
        names: list[Kind] = [*MARKS]
        kinds: list[Kind] = [
            kind for kind in names if any((path / mark).exists() for mark in MARKS[kind])
        ]
        for kind in kinds:
            yield kind, path
        inner = () if {"prediction", "sia"} & set(kinds) else folders
        folders[:] = [name for name in inner if not name.startswith(".")]

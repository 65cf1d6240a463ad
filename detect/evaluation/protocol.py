"""Names and facts that stand beside figures, and the figures as a table."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from detect.checkpoint import TrainedDetector
from detect.evaluation.report_data import COLUMNS, Comparison
from detect.evaluation.text import number, percent
from detect.methods import METHODS
from synth.data.catalog import Category
from synth.sia.strength import Strength

SOURCE_NAMES = {
    "sia": "SDAS images",
    "textures": "textures",
    "noise": "noise images",
    "cutpaste": "CutPaste",
    "defects": "real defects",
    "mixture": "a mixture",
}


def detector_name(trained: TrainedDetector) -> str:
    """How a detector is called in tables."""
    method, source = trained.config["method"], trained.config["source"]["kind"]
    name = METHODS[method].title
    return name if source == "none" else f"{name} on {SOURCE_NAMES[source]}"


def protocol(
    trained: TrainedDetector, category: Category, *, watched: bool = False
) -> dict[str, str]:
    """The facts that a figure needs beside it. watched: test images were measured in training."""
    readers = "this evaluation and while training" if watched else "this evaluation only"
    config, detector = trained.config, trained.config["detector"]
    backbone = detector["backbone"]
    height, width = trained.image_size
    num_held_out = len(trained.calibration.scores)
    own = len(trained.calibration_for(category.name).scores)
    return {
        "Training": f"{config['data']['num_images'] - num_held_out} normal images of "
        f"{', '.join(trained.categories)}; {own} more held out for the threshold",
        "Test": f"{len(category.test)} images, read for {readers}; they chose nothing",
        "Anomaly source": source_facts(config["source"]),
        "Image size": f"{height} x {width} px; maps compared at the masks' own size",
        "Backbone": f"{backbone['name']}, {Path(backbone['weights']).name} weights, layers "
        f"{', '.join(map(str, backbone['layers']))}",
        "Detector": detector_facts(trained),
        "Seed": str(detector["seed"]),
        "Precision": f"training {config['precision']}, scoring fp32",
        "Date": date.today().isoformat(),
    }


def detector_facts(trained: TrainedDetector) -> str:
    """How large it is and what was done to it."""
    detector = trained.config["detector"]
    if not trained.num_steps:
        return trained.detector.facts
    average = trained.detector.stages()[-1].average
    weights = weights_facts(average, trained.config.get("patience"))
    return (
        f"{trained.detector.facts}; {trained.num_steps} steps of {detector['batch_size']} images, "
        f"{weights}"
    )


def weights_facts(average: bool, patience: int | None) -> str:
    """Which weights of a training are the detector's. average: whether it means over the steps."""
    if patience is not None:
        return "averaged weights of the best check, on images held out of training"
    return "averaged weights of the last step" if average else "weights of the last step"


def source_facts(source: Mapping[str, Any]) -> str:
    """Where the pixels of the synthetic anomalies came from."""
    if "categories" in source:
        parts = source["categories"].items()
        return "; ".join(f"{name}: {source_facts(part)}" for name, part in parts)
    if source["kind"] == "mixture":
        parts = source["parts"]
        return ", ".join(f"{percent(part['share'])} {source_facts(part)}" for part in parts)
    if source["kind"] == "sia" and {"strength", "num_steps"} <= set(source):
        strength = Strength.from_json(source["strength"]).text
        return f"{source['num_images']} SDAS images, s {strength}, {source['num_steps']} steps"
    return SOURCE_FACTS[source["kind"]].format_map({"method": "unknown", **source})


SOURCE_FACTS = {
    "sia": "{num_images} images of an SIA folder ({method})",
    "textures": "{num_images} photographs of textures, augmented",
    "none": "none, the method needs no anomalies",
    "noise": "uniform noise",
    "cutpaste": "the normal image itself, jittered and shifted (CutPaste under Perlin masks)",
    "defects": "{num_images} photographs of real defects, which are cut out and pasted",
}


def table(rows: Sequence[Comparison]) -> str:
    """Comparison rows as aligned text."""
    width = max(len(row.name) for row in rows)
    lines = ["  ".join([" " * width, *COLUMNS])]
    for row in rows:
        cells = [f"{number(value(row)):>{len(name)}}" for name, value in COLUMNS.items()]
        lines.append("  ".join([f"{row.name:{width}}", *cells]))
    return "\n".join(lines)

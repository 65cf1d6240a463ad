"""The tables of a dataset card, in Markdown."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Value

from synth.sia.reader import SiaFolder
from synth.sia.rows import Row

NUM_BINS, BAR = 10, 24
STRENGTH_TEXT = """\
The strength s of each image is in its row: the variance of every reverse step of the diffusion
model was multiplied by 1 + s. At 0 the model draws normal images; the higher s, the farther from
normal."""
COLUMNS = {
    "image": "the image, RGB, as the original PNG",
    "mask": "where the anomaly is: 255, elsewhere 0",
    "dataset": "of the normal images",
    "category": "of the normal images",
    "index": "number of the image in its category",
    "seed": "with the index, the seed of all that is random in the image",
    "strength": "s of the image, or of the anomaly pasted in",
    "num_steps": "reverse steps",
    "opacity": "δ of the blend",
    "normal_file": "the normal image that this one was made from",
    "source_index": "the anomaly image pasted in",
    "depth": "timestep that the normal image was noised to",
    "quality": "distance to the nearest normal training image in standardised backbone features, "
    "1 is as far as a held-out normal image",
    "attempt": "how many candidates of this index were rejected before",
    "sha256": "of the image file",
    "mask_sha256": "of the mask file",
}
SETTINGS = {
    "method": "method",
    "strength": "strength s",
    "num_steps": "reverse steps",
    "seed": "seed",
    "checkpoint": "digest of the model's weights",
    "image_size": "height and width in pixels",
    "precision": "arithmetic",
    "opacity": "opacity δ",
    "foreground": "foreground rule",
    "normals": "digest of the normal images",
    "num_sources": "anomaly images to paste from",
    "sources_of": "their dataset and category",
    "sources": "anomaly images",
}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a bar within a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def contents_table(folders: Mapping[str, SiaFolder]) -> str:
    """Per configuration: images, strengths, and quality where it was measured."""
    measured = any("quality" in row for folder in folders.values() for row in folder.rows)
    head = ["configuration", "images", "strength: least, median, most"]
    rows = []
    for name, folder in folders.items():
        cells = [f"`{name}`", f"{len(folder.rows):,}", spread(folder.rows, "strength")]
        rows.append(cells + [spread(folder.rows, "quality")] * measured)
    return table(head + ["quality: least, median, most"] * measured, rows)


def spread(rows: Sequence[Row], field: str) -> str:
    """Least, median and greatest value of a field, a dash where no row has it."""
    values = numbers(rows, field)
    if not values:
        return "–"
    return ", ".join(f"{value:.3g}" for value in (min(values), np.median(values), max(values)))


def numbers(rows: Iterable[Row], field: str) -> list[float]:
    """The values of a field where rows have one."""
    return [float(row[field]) for row in rows if isinstance(row.get(field), int | float)]


def columns_table(features: Sequence[Mapping[str, Any]]) -> str:
    """Every column of any configuration, and what it means."""
    names = {name: feature for one in features for name, feature in one.items()}
    return table(
        ["column", "type", "meaning"],
        [
            [f"`{name}`", feature.dtype if isinstance(feature, Value) else "image", meaning(name)]
            for name, feature in names.items()
        ],
    )


def meaning(column: str) -> str:
    """What a column says, empty for one that is not of the format."""
    return COLUMNS.get(column, "")


def settings_tables(configs: Mapping[str, Mapping[str, Any]]) -> str:
    """What all categories share in one table, what differs in another, a row per category."""
    flat = {name: flattened(config) for name, config in configs.items()}
    keys = list(dict.fromkeys(key for config in flat.values() for key in config))
    values = {key: [config.get(key, "–") for config in flat.values()] for key in keys}
    shared = [key for key in keys if len(set(values[key])) == 1]
    differing = [key for key in keys if key not in shared]
    tables = [table(["setting", "value"], [[key, values[key][0]] for key in shared])]
    if differing:
        rows = [
            [f"`{name}`", *(config.get(key, "–") for key in differing)]
            for name, config in flat.items()
        ]
        tables.append(table(["configuration", *differing], rows))
    return "\n\n".join(tables)


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Readable names and values of a configuration, nested ones after a colon."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{SETTINGS.get(key, key.replace('_', ' '))}"
        if isinstance(value, Mapping) and value and key != "strength":
            flat |= flattened(value, f"{name}: ")
        else:
            flat[name] = setting(key, value)
    return flat


def setting(key: str, value: Any) -> str:
    """A configuration's value as one reads it."""
    pair = isinstance(value, list) and len(value) == 2
    if pair and key in ("strength", "opacity"):
        return f"{value[0]:g} to {value[1]:g}, drawn evenly"
    if pair and key == "image_size":
        return f"{value[0]} × {value[1]}"
    if isinstance(value, bool | int | float) or value is None:
        return json.dumps(value)
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def strength_section(rows: Sequence[Row]) -> str:
    """What strength is, and a histogram; empty where the rows state none."""
    values = numbers(rows, "strength")
    return f"## Strength\n\n{STRENGTH_TEXT}\n\n{histogram(values)}" if values else ""


def histogram(values: Sequence[float]) -> str:
    """How many images there are at which strength, as a table with bars."""
    low, high = min(values), max(values)
    if low == high:
        return table(["strength", "images"], [[f"{low:g}", f"{len(values):,}"]])
    counts, edges = np.histogram(values, NUM_BINS, (low, high))
    return table(
        ["strength", "images", ""],
        [
            [f"{edges[n]:.3g} to {edges[n + 1]:.3g}", f"{count:,}", bar(count, counts.max())]
            for n, count in enumerate(counts)
        ],
    )


def bar(count: int, most: int) -> str:
    """A bar of blocks, one at least for one image."""
    return "█" * (max(1, round(BAR * count / most)) if count else 0)

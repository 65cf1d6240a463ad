"""The tables of a dataset card, in Markdown: columns, settings, strengths, measured figures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Value

from synth.base.errors import UserError
from synth.base.files import Json, read_json, reading
from synth.publishing.parquet import FILE_FIELDS
from synth.sia.reader import SiaFolder
from synth.sia.rows import FIELDS, Row

NUM_BINS, BAR = 10, 24
STRENGTH_TEXT = """\
The strength s of each image is in its row: the variance of every reverse step of the diffusion
model was multiplied by 1 + s. At 0 the model draws normal images; the higher s, the farther from
normal."""
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
        cells = [f"`{name}`", f"{len(folder.rows):,}", low_middle_high(folder.rows, "strength")]
        rows.append(cells + [low_middle_high(folder.rows, "quality")] * measured)
    return table(head + ["quality: least, median, most"] * measured, rows)


def low_middle_high(rows: Sequence[Row], field: str) -> str:
    """Least, median and greatest value of a field, a dash where no row has it."""
    values = numbers(rows, field)
    if not values:
        return "–"
    return ", ".join(f"{value:.3g}" for value in (min(values), np.median(values), max(values)))


def numbers(rows: Iterable[Row], field: str) -> list[float]:
    """The values of a field where rows have one."""
    return [float(row[field]) for row in rows if isinstance(row.get(field), int | float)]


def columns_table(features: Sequence[Mapping[str, Any]]) -> str:
    """Every column of any configuration, and what it means, where the format knows it."""
    names = {name: feature for one in features for name, feature in one.items()}
    meanings = {FILE_FIELDS.get(name, name): field.meaning for name, field in FIELDS.items()}
    return table(
        ["column", "type", "meaning"],
        [
            [
                f"`{name}`",
                feature.dtype if isinstance(feature, Value) else "image",
                meanings.get(name, ""),
            ]
            for name, feature in names.items()
        ],
    )


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


# Figures, from what `synth inspect` and `synth train` wrote

QUALITY_FILE, CHECK_FILE, CONFIG_FILE = "quality.json", "check.json", "config.json"
HEAD = (
    "images",
    "strength s",
    "number",
    "distance to normal",
    "KID",
    "unlike the product",
    "near-copies",
    "diversity",
    "grain",
)
LEGEND = """\
Distance to normal: to the nearest normal training image in standardised features, 1 is as far as
held-out normal images are. KID: distance between these images and the normal training images as
sets, 0 for images of the same kind. Unlike the product: share farther than 95 % of held-out normal
images. Near-copies: share nearer to a training image than normal images ever are. Diversity: mean
distance between two of the images over that of two training images. Grain: pixel noise over that
of held-out normal images; damage has distance, noise has grain as well. ± is one standard error."""
AGAIN = "run `synth inspect` again, or train the model anew"


def figures_section(folder: Path, categories: Sequence[str]) -> str:
    """The section on figures found in or below `folder`, in Markdown.

    Raises UserError where there are none, and where they are of another category than those given.
    """
    qualities = sorted(folder.rglob(QUALITY_FILE))
    checks = sorted(folder.rglob(CHECK_FILE))
    if not qualities and not checks:
        raise UserError(
            f"--figures: no {QUALITY_FILE} or {CHECK_FILE} in or below {folder}; give what "
            "`synth inspect` wrote, or the folder of the model"
        )
    parts = []
    for path in (*qualities, *checks):
        part = quality_part if path in qualities else check_part
        about = read_json(path, AGAIN)
        with reading(path, AGAIN):
            parts.append(part(path, about, categories))
    legend = f"\n\n{LEGEND}" if qualities else ""
    return f"## Figures\n\n{chr(10).join(parts).strip()}{legend}"


def quality_part(path: Path, quality: Json, categories: Sequence[str]) -> str:
    """The figures of one `synth inspect`."""
    category = known_category(path, quality.get("category"), categories)
    lines = [f"### {category}", ""]
    if quality.get("check"):
        lines += [f"{sentence(path, quality['check'])}", ""]
    groups = quality.get("groups", [])
    lines += [table(HEAD, [group_row(group) for group in groups]), ""]
    by = quality.get("measured_by", {})
    lines += [
        f"Features of `{by.get('backbone')}` (weights: {by.get('weights')}); "
        f"{by.get('num_training_images')} normal training images, "
        f"{by.get('num_held_out_images')} held out.",
        "",
    ]
    return "\n".join(lines)


def group_row(group: Any) -> list[str]:
    """One line of the table."""
    return [
        str(group["name"]),
        "–" if group["strength"] is None else f"{group['strength']:.3g}",
        str(group["num_images"]),
        with_error(group["quality"], 2),
        with_error(group["kid"], 3),
        f"{100 * group['share_far']:.0f} %",
        f"{100 * group['share_copies']:.0f} %",
        "–" if group["diversity"] is None else f"{group['diversity']:.2f}",
        f"{group['grain']:.2f}" if "grain" in group else "–",
    ]


def with_error(measured: Json | None, digits: int) -> str:
    """`1.52 ± 0.04`, a dash where nothing was measured."""
    if measured is None:
        return "–"
    error = measured["error"]
    more = "" if error is None else f" ± {error:.{digits}f}"
    return f"{measured['value']:.{digits}f}{more}"


def check_part(path: Path, check: Json, categories: Sequence[str]) -> str:
    """What `synth train` says of its samples at strength 0."""
    model = path.parent / CONFIG_FILE
    about = read_json(model) if model.exists() else {}
    if isinstance(check.get("categories"), dict):  # of a model that knows several
        known = {name: one for name, one in check["categories"].items() if name in categories}
        if not known:
            known_category(path, ", ".join(check["categories"]), categories)
        return "\n".join(f"### {name}\n\n{sentence(path, one)}\n" for name, one in known.items())
    name = about.get("category")
    heading = known_category(path, name, categories) if name else "The model"
    return f"### {heading}\n\n{sentence(path, check)}\n"


def sentence(path: Path, check: Json) -> str:
    """The check in one sentence. Raises UserError for a damaged file."""
    if not isinstance(check.get("sentence"), str):
        raise UserError(f"{path}: damaged (no sentence); make it anew")
    return f"Samples at strength 0: {check['sentence']}."


def known_category(path: Path, name: object, categories: Sequence[str]) -> str:
    """The category, which must be published."""
    if name not in categories:
        raise UserError(
            f"--figures: {path} is of category {name!r}; published are {', '.join(categories)}"
        )
    return str(name)

"""Measured figures for a dataset card, from what `synth inspect` and `synth train` wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synth.base.errors import UserError
from synth.base.files import Json, read_json, reading
from synth.publishing.card_tables import table

QUALITY_FILE, CHECK_FILE, CONFIG_FILE = "quality.json", "check.json", "config.json"
HEAD = (
    "images",
    "strength s",
    "number",
    "distance to normal",
    "KID × 1000",
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
        with_error(group["kid"], 3, 1000),
        f"{100 * group['share_far']:.0f} %",
        f"{100 * group['share_copies']:.0f} %",
        "–" if group["diversity"] is None else f"{group['diversity']:.2f}",
        f"{group['grain']:.2f}" if "grain" in group else "–",
    ]


def with_error(measured: Json | None, digits: int, factor: float = 1) -> str:
    """`1.52 ± 0.04`, a dash where nothing was measured."""
    if measured is None:
        return "–"
    error = measured["error"]
    more = "" if error is None else f" ± {factor * error:.{digits}f}"
    return f"{factor * measured['value']:.{digits}f}{more}"


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

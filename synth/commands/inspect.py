"""`synth inspect`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from synth.base.command import progress_bar, say, warn
from synth.base.errors import UserError
from synth.base.options import (
    Folder,
    OptionalFolder,
    require_not_negative,
    require_output,
    require_positive,
)
from synth.data.catalog import Category
from synth.data.options import DataOptions

if TYPE_CHECKING:
    from synth.base.backbones import BackboneConfig
    from synth.diffusion.model import DiffusionModel
    from synth.sia.reader import SiaFolder

BackboneName = Annotated[
    str | None,
    tyro.conf.arg(metavar="STR", help_behavior_hint="(default: EfficientNet-Lite0, bundled)"),
]
BackboneWeights = Annotated[
    str | None,
    tyro.conf.arg(metavar="STR", help_behavior_hint="(default: hub for other backbones)"),
]


def inspect(
    data: DataOptions,
    *,
    model: OptionalFolder = None,
    folder: OptionalFolder = None,
    foreground: bool = False,
    out: Folder,
    num: int = 100,
    strengths: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5),
    seed: int = 0,
    backbone: BackboneName = None,
    backbone_weights: BackboneWeights = None,
) -> None:
    """Look at a model, a folder of images, the foreground: pictures and figures on one page.

    How far images are from the normal ones, by strength; how varied they are; copies of training
    images. Normal images are the measure, those held out from training the floor.

    Args:
        data: Which normal images; test images are not opened.
        model: What `synth train` made: samples at rising strength, from the same noise. The first
            of them is also drawn at strengths up to 1, for a slider on the page.
        folder: What `synth generate` or `synth blend` made: a score for every image.
        foreground: Training images with the foreground outlined, where anomalies may lie.
        out: The page, its pictures, the figures, the samples (drawn once).
        num: Samples at each strength; KID needs 100 or more.
        strengths: Of the samples; 0 is the plain DDPM.
        seed: Of the samples, together with their index.
        backbone: Name of the timm network that measures.
        backbone_weights: hub (downloaded once), random, bundled, or a safetensors file.

    """
    require_positive(num=num)
    require_not_negative(seed=seed)
    if not strengths or min(strengths) < 0:
        got = ", ".join(f"{s:g}" for s in strengths) or "none"
        raise UserError(f"--strengths: got {got}, must be 0 or more")
    if model is None and folder is None and not foreground:
        raise UserError("nothing to look at; give --model, --folder or --foreground, or several")
    category = data.open(out)
    require_output(out)
    from synth.quality.inspect_data import Sampling
    from synth.quality.run import look_at_foreground, look_at_images, write_parts

    parts = []
    if model is not None or folder is not None:
        parts.append(
            look_at_images(
                category,
                out,
                progress_bar,
                warn,
                say,
                model=open_model(model),
                folder=open_folder(folder, category),
                sampling=Sampling(strengths, num, seed),
                backbone=backbone_config(backbone, backbone_weights),
            )
        )
    if foreground:
        parts.append(look_at_foreground(category, out, progress_bar))
    for finding in (text for part in parts for text in part.findings):
        say(finding)
    say(f"to look at: {write_parts(category, parts, out)}")


def open_model(path: Path | None) -> "tuple[Path, DiffusionModel] | None":
    """The model where one is given. Raises UserError as `load_model`."""
    if path is None:
        return None
    from synth.base.device import default_device
    from synth.diffusion.model import load_model

    return path, load_model(path, default_device())


def open_folder(path: Path | None, category: Category) -> "SiaFolder | None":
    """The SIA folder where one is given. Raises UserError as `open_sia`."""
    if path is None:
        return None
    from synth.sia.reader import open_sia

    found = open_sia(path)
    if found.category != category.name:
        warn(f"{path} is of category {found.category}, the normal images of {category.name}")
    return found


def backbone_config(name: str | None, weights: str | None) -> "BackboneConfig":
    """The network that measures: the default one, or layers 1 to 3 of another."""
    from synth.base.backbone_weights import default_weights
    from synth.base.backbones import DEFAULT_BACKBONE

    if name is None and weights is None:
        return DEFAULT_BACKBONE
    name = name or DEFAULT_BACKBONE.name
    weights = weights or default_weights(name)
    return replace(DEFAULT_BACKBONE, name=name, weights=weights)

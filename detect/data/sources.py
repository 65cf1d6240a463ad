"""Anomaly sources: where the pixels of a synthetic anomaly come from.

All but real defects are blended in under the same kind of mask (Perlin and foreground), so sources
differ only in pixels and opacity. Real defects keep their outlines. P is an anomaly image, I the
normal image it is blended into.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from detect.data.augmentations import augmented
from detect.data.defects import (
    Cutout,
    DefectDraw,
    Mask,
    Photograph,
    find_photographs,
    read_cutout,
)
from detect.images import CACHE_BYTES, ImagePool
from synth.base.errors import UserError
from synth.base.progress import Bars
from synth.blend import OPACITY
from synth.data.baselines import Drawn, noise, shifted, texture_files
from synth.data.catalog import Category
from synth.pictures import Image
from synth.sia.format import HEADER_FILE, SHARD_SIZE, count_missing
from synth.sia.reader import SiaFolder, open_sia

TEXTURE_OPACITY = (0.2, 1.0)
"""Range of δ for textures. Source: RealNet's code."""

ImageSize = tuple[int, int]
"""Height and width in pixels."""
Draw = Callable[[np.random.Generator, Image], Image | Cutout]
"""(rng, I) -> P of the same shape, or a cut-out to paste."""


class Anomaly(NamedTuple):
    """An anomaly image P, uint8 [H, W, 3] RGB, and the range to draw its opacity δ from.

    mask: bool [h, w] of a cut-out, whose image is of its size; None leaves the mask to be drawn.
    """

    image: Image
    opacity: tuple[float, float]
    mask: Mask | None = None


DrawAnomaly = Callable[[np.random.Generator, Image], Anomaly]
"""(rng, I) -> an anomaly image of I's shape, or a cut-out, and its range of opacity."""


class Part(NamedTuple):
    """A requested source: a key of SOURCES, its folder if it has one, its weight."""

    kind: str
    folder: Path | None = None
    weight: float = 1.0


class OpenPart(NamedTuple):
    """A source that exists; nothing is decoded yet.

    load: (size, whether the product is grey, bytes to keep, bars) -> how to draw. category: what
    the images show, None if they show no product. paths: the files to draw from. photographs: those
    of real defects among them, which no test may hold.
    """

    config: dict[str, Any]
    opacity: tuple[float, float]
    category: str | None
    load: Callable[[ImageSize, bool, int, Bars], Draw]
    paths: Sequence[Path] = ()
    photographs: Sequence[Photograph] = ()


class LoadedPart(NamedTuple):
    """A source in memory; until: the share of draws for it and the parts before it."""

    draw: Draw
    opacity: tuple[float, float]
    until: float


class AnomalySource:
    """One or several sources; every draw picks one by weight."""

    def __init__(self, parts: Sequence[LoadedPart]) -> None:
        self.parts = tuple(parts)

    def __call__(self, rng: np.random.Generator, normal: Image) -> Anomaly:
        """Draw an anomaly image for the normal image I; it depends only on `rng` and I."""
        part = self.parts[0]
        if len(self.parts) > 1:
            chance = rng.random()
            part = next(part for part in self.parts if chance < part.until)
        drawn = part.draw(rng, normal)
        image, mask = drawn if isinstance(drawn, Cutout) else (drawn, None)
        return Anomaly(image, part.opacity, mask)

    def as_official(self) -> "AnomalySource":
        """The same with textures augmented as the authors do it."""
        return AnomalySource(
            [
                part._replace(draw=replace(part.draw, official=True))
                if isinstance(part.draw, TextureDraw)
                else part
                for part in self.parts
            ]
        )


@dataclass(frozen=True)
class OpenSource:
    """The parts of a source and their shares, which sum to 1; loaded images are kept."""

    parts: tuple[OpenPart, ...]
    shares: tuple[float, ...]
    loaded: dict[tuple[ImageSize, bool], AnomalySource] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The source as it is recorded."""
        if not self.parts:
            return {"kind": "none"}
        rows = [{**part.config, "opacity": list(part.opacity)} for part in self.parts]
        if len(rows) == 1:
            return rows[0]
        shared = zip(rows, self.shares, strict=True)
        return {"kind": "mixture", "parts": [{**row, "share": share} for row, share in shared]}

    def digest(self) -> str:
        """A fingerprint of its files' bytes, which may change under the same names and times."""
        sha = hashlib.sha256()
        for path in (path for part in self.parts for path in part.paths):
            with path.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
        return sha.hexdigest()[:16]

    @property
    def photographs(self) -> list[Photograph]:
        """The photographs of real defects."""
        return [photograph for part in self.parts for photograph in part.photographs]

    def other_categories(self, name: str) -> list[str]:
        """The categories other than `name` that its images show."""
        shown = {part.category for part in self.parts} - {None, name}
        return sorted(category for category in shown if category is not None)

    def load(
        self, size: ImageSize, grey: bool, bars: Bars, cache_bytes: int | None = None
    ) -> AnomalySource:
        """Decode what fits into memory, before workers are forked: they share one copy.

        cache_bytes: None takes CACHE_BYTES. grey: whether the product has no colour; noise and
        textures then have none either, because colour alone would give them away. Raises
        UserError for unreadable images.
        """
        if (size, grey) not in self.loaded:
            cache_bytes = (cache_bytes or CACHE_BYTES) // len(self.parts)
            untils = [*np.cumsum(self.shares)[:-1].tolist(), 1.0]
            self.loaded[size, grey] = AnomalySource(
                [
                    LoadedPart(part.load(size, grey, cache_bytes, bars), part.opacity, until)
                    for part, until in zip(self.parts, untils, strict=True)
                ]
            )
        return self.loaded[size, grey]

    def forget(self) -> None:
        """Free the memory, unless something else still holds the loaded images."""
        self.loaded.clear()


def open_source(parts: Sequence[Part], category: Category | None = None) -> OpenSource:
    """Find the parts of a source; no parts make a source for methods without anomalies.

    category: which one to take of an SIA folder that holds several. Raises UserError for a missing
    or unused folder, an incomplete SIA folder, and a folder without textures.
    """
    total = sum(part.weight for part in parts)
    opened = [SOURCES[part.kind](folder_for(part, category)) for part in parts]
    return OpenSource(tuple(opened), tuple(part.weight / total for part in parts))


def open_sources(parts: Sequence[Part], categories: Sequence[Category]) -> list[OpenSource]:
    """Open a source for each category: anomaly images of its own, everything else shared.

    Raises UserError as `open_source`.
    """
    opened: dict[tuple[Path | None, ...], OpenSource] = {}
    found: list[OpenSource] = []
    for category in categories:
        folders = tuple(folder_for(part, category) for part in parts)
        if folders not in opened:
            opened[folders] = open_source(parts, category)
        found.append(opened[folders])
    return found


def folder_for(part: Part, category: Category | None) -> Path | None:
    """The folder of a part, or the category's own folder below it if there is one."""
    if part.kind not in ("sia", "defects") or part.folder is None or category is None:
        return part.folder
    below = part.folder / category.dataset / category.name
    sign = below / HEADER_FILE if part.kind == "sia" else below
    return below if sign.exists() else part.folder


# Images from files


@dataclass(frozen=True)
class TextureDraw:
    """Draws a texture from the pool and augments it; without colour if the product has none."""

    pool: ImagePool
    grey: bool
    official: bool = False

    def __call__(self, rng: np.random.Generator, normal: Image) -> Image:
        """Draw one."""
        texture = augmented(self.pool.draw(rng, normal), rng, official=self.official)
        return as_grey(texture) if self.grey else texture


def as_grey(image: Image) -> Image:
    """The luminance in all three channels."""
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


# Kinds of sources


def open_sia_images(folder: Path | None) -> OpenPart:
    """Open what `synth generate` made, or any folder of its format."""
    if folder is None:
        raise UserError(
            "--sia: missing; give the SIA folder that `synth generate` made, or another --source "
            f"({', '.join(SOURCES)})"
        )
    sia = open_sia(folder, kind="source")
    require_shards(sia)
    paths = [sia.path / row["file_name"] for row in sia.rows]

    def load(size: ImageSize, grey: bool, cache_bytes: int, bars: Bars) -> Draw:
        return ImagePool(paths, size, bars, cache_bytes).draw

    config = {"kind": "sia", "num_images": len(paths), **sia.config}
    opacity = OPACITY if sia.product is not None else TEXTURE_OPACITY
    return OpenPart(config, opacity, sia.product, load, paths)


def require_shards(sia: SiaFolder) -> None:
    """Raise UserError for a shard of the folder that is damaged or lacks images."""
    num_images = len(sia.rows)
    for shard in range(-(-num_images // SHARD_SIZE)):
        missing = count_missing(sia.path, shard, num_images)
        if missing:
            raise UserError(
                f"{sia.path}: shard {shard} lacks {missing} images or its record; run the command "
                "that made the folder again to complete it"
            )


def open_textures(folder: Path | None) -> OpenPart:
    """Open a folder of photographs of textures, such as DTD, with all its subfolders."""
    if folder is None:
        raise UserError("--textures: missing; give a folder of photographs of textures")
    header = next(folder.rglob(HEADER_FILE), None)
    if header is not None:
        raise UserError(f"--textures: {header.parent} is an SIA folder; give it with --sia")
    paths = texture_files(folder)

    def load(size: ImageSize, grey: bool, cache_bytes: int, bars: Bars) -> Draw:
        return TextureDraw(ImagePool(paths, size, bars, cache_bytes), grey)

    config = {"kind": "textures", "num_images": len(paths), "files": listed(folder, paths)}
    return OpenPart(config, TEXTURE_OPACITY, None, load, paths)


def listed(folder: Path, paths: Sequence[Path]) -> str:
    """A fingerprint of files below `folder` by name and size; none is opened."""
    listing = [f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in paths]
    return hashlib.sha256(os.fsencode("\n".join(listing))).hexdigest()[:16]


def open_defects(folder: Path | None) -> OpenPart:
    """Open a folder of photographs of real defects, with a mask for each."""
    if folder is None:
        raise UserError("--defects: missing; give a folder of photographs of defects and masks")
    photographs = find_photographs(folder)
    paths = [path for photograph in photographs for path in photograph]

    def load(size: ImageSize, grey: bool, cache_bytes: int, bars: Bars) -> Draw:
        cutouts = [read_cutout(photograph, size) for photograph in photographs]
        if grey:
            cutouts = [Cutout(as_grey(image), mask) for image, mask in cutouts]
        return DefectDraw(cutouts)

    config = {"kind": "defects", "num_images": len(photographs), "files": listed(folder, paths)}
    return OpenPart(config, (1.0, 1.0), None, load, paths, photographs)


Baseline = Callable[[Image, np.random.Generator, bool], Drawn]
"""One of `synth.data.baselines`: (I, rng, whether the product is grey) -> P."""


def open_baseline(kind: str, baseline: Baseline, folder: Path | None) -> OpenPart:
    """Noise, or CutPaste: the normal image itself, jittered and shifted; nothing is read.

    A Perlin mask replaces CutPaste's own rectangle, as in `synth baseline shifted`, so that sources
    are compared by their pixels and not by their outlines.
    """
    if folder is not None:
        raise UserError(f"{folder}: not used, {kind} has no folder; leave it out")

    def load(size: ImageSize, grey: bool, cache_bytes: int, bars: Bars) -> Draw:
        return partial(draw_baseline, baseline, grey)

    return OpenPart({"kind": kind}, OPACITY, None, load)


def draw_baseline(baseline: Baseline, grey: bool, rng: np.random.Generator, normal: Image) -> Image:
    """Draw one; a function of this module, so that any kind of worker can be given it."""
    return baseline(normal, rng, grey).image


SOURCES: Mapping[str, Callable[[Path | None], OpenPart]] = {
    "sia": open_sia_images,
    "textures": open_textures,
    "noise": partial(open_baseline, "noise", noise),
    "cutpaste": partial(open_baseline, "cutpaste", shifted),
    "defects": open_defects,
}

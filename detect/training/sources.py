"""Anomaly sources: where the pixels of a synthetic anomaly come from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from synth.errors import UserError
from synth.images import require_images, resize
from synth.progress import Bars
from synth.sia.reader import SiaFolder, open_sia

AnomalySource = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.uint8]]
"""(rng, (H, W)) -> an anomaly image P, uint8 [H, W, 3] RGB."""

CACHE_BYTES = 1 << 30


class SiaSource:
    """Random images of an SIA folder; decoded once and kept while they fit into `cache_bytes`."""

    def __init__(self, folder: SiaFolder, cache_bytes: int = CACHE_BYTES) -> None:
        self.folder, self.cache_bytes = folder, cache_bytes
        self.kept: dict[tuple[int, tuple[int, int]], NDArray[np.uint8]] = {}
        self.kept_bytes = 0

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Draw one image, resized to `size`: uint8 [H, W, 3] RGB."""
        number = int(rng.integers(len(self.folder.rows)))
        if (number, size) in self.kept:
            return self.kept[number, size]
        image = resize(self.folder.read_image(number), size)
        if self.kept_bytes + image.nbytes <= self.cache_bytes:
            self.kept[number, size] = image
            self.kept_bytes += image.nbytes
        return image


def noise_source(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Independent uniform noise: what an anomaly source is worth without any model."""
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


def grey_noise_source(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """As `noise_source`, the same in red, green and blue."""
    return np.repeat(rng.integers(0, 256, (*size, 1), dtype=np.uint8), 3, axis=2)


class NamedSource(NamedTuple):
    """A source and what to record of it; `category` is None where it has none."""

    draw: AnomalySource
    config: dict[str, Any]
    category: str | None


def matched(source: NamedSource, grey: bool) -> NamedSource:
    """Noise is as grey as the product: colour alone would give it away. Other sources stay."""
    if source.config["kind"] != "noise":
        return source
    draw = grey_noise_source if grey else noise_source
    return NamedSource(draw, {**source.config, "grey": grey}, source.category)


def open_source(kind: str, sia: Path | None, bars: Bars) -> NamedSource:
    """Open the anomaly source of a kind: "sia" or "noise".

    Raises UserError when the two arguments disagree, and for a folder that is no complete SIA
    folder of anomaly images or has unreadable ones.
    """
    if kind == "noise":
        if sia is not None:
            raise UserError("--sia: not used with --source noise; leave one of them out")
        return NamedSource(noise_source, {"kind": "noise"}, None)
    if sia is None:
        raise UserError(
            "--sia: missing; give the SIA folder that `synth generate` made, or --source noise"
        )
    folder = open_sia(sia, kind="source")
    with bars("checking anomaly images", "image") as update:
        require_images([folder.path / row["file_name"] for row in folder.rows], update)
    config = {"kind": "sia", "num_images": len(folder.rows), **folder.config}
    return NamedSource(SiaSource(folder), config, folder.product)

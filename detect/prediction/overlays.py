"""Prediction on image files: which ones, and a picture of each with its anomaly map on it."""

from collections.abc import Sequence
from pathlib import Path

from detect.evaluation.measure import native_map
from detect.heatmap import HeatRange, heat_range, overlay
from detect.scoring import Scored
from synth.errors import UserError
from synth.images import list_images, read_image, write_png
from synth.progress import Bars


def find_images(given: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the images below them, in the order given.

    Raises UserError for nothing given, a path that does not exist, and a folder without images.
    """
    if not given:
        raise UserError("images: none given; name image files or folders")
    return [path for place in given for path in images_at(place)]


def images_at(place: Path) -> list[Path]:
    """A file itself, or the images of a folder and below."""
    if not place.exists():
        raise UserError(f"{place}: no such file or folder; check the path")
    if not place.is_dir():
        return [place]
    found = list_images(place, recursive=True)
    if not found:
        raise UserError(f"{place}: no images in this folder or below")
    return found


def write_overlays(
    folder: Path, paths: Sequence[Path], scored: Scored, threshold: float, bars: Bars
) -> None:
    """Write <number>_<name>.png for each image: its map laid over it, one colour scale for all.

    The scale reaches at least to the threshold: normal images alone do not glow.
    """
    heat = heat_range(list(scored.maps))
    heat = HeatRange(heat.low, max(heat.high, threshold))
    width = len(str(len(paths) - 1))
    with bars("writing overlays", "image") as update:
        for number, (path, scores) in enumerate(zip(paths, scored.maps, strict=True)):
            image = read_image(path)
            anomaly_map = native_map(scores, image.shape[:2])
            picture = overlay(image, anomaly_map, heat.low, heat.high)
            write_png(folder / f"{number:0{width}d}_{path.stem}.png", picture)
            update(number + 1, len(paths))

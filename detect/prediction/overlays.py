"""Pictures of a prediction: the image with its anomaly map on it, and the mask."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from detect.calibration import Calibration
from detect.heatmap import HeatRange, Image, outline, overlay
from detect.prediction.predictor import Prediction
from synth.images import write_png

PictureChoice = Literal["all", "anomalous", "none"]
OVERLAYS, MASKS = "overlays", "masks"
MAX_STEM_BYTES = 100
OWN_NAME = re.compile(
    r"\.?(?P<number>\d{6}|[1-9]\d{6,})_.*\.png(?P<partial>\.[0-9a-f]{8}\.partial)?"
)
"""Of pictures, and of what a killed run left of one."""
AWKWARD = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
"""Characters that some system, or a list of names in lines, cannot have in a name."""

WANTED: dict[PictureChoice, Callable[[Prediction], bool]] = {
    "all": lambda prediction: True,
    "anomalous": lambda prediction: prediction.is_anomalous,
    "none": lambda prediction: False,
}


class PictureNames(NamedTuple):
    """The overlay's and the mask's file, relative to the folder; None where not written."""

    overlay: str | None
    mask: str | None


def heat_scale(calibration: Calibration) -> HeatRange:
    """The one colour scale of all images, known before any of them: its middle is the threshold.

    It begins at the median of the held-out normals' pooled maps, so that what half of them show
    stays clear, and ends as far above the threshold as the median is below it.
    """
    low = float(np.median(calibration.map_scores))
    return HeatRange(low, 2 * calibration.map_threshold - low)


def write_pictures(
    folder: Path, number: int, stem: str, image: Image, prediction: Prediction, heat: HeatRange
) -> PictureNames:
    """Write overlays/<number>_<stem>.png and masks/<number>_<stem>.png at the image's size.

    number: of the row, so that no two images share a name. The mask is {0, 255} and outlined in the
    overlay.
    """
    name = f"{number:06d}_{short(stem)}.png"
    picture = overlay(image, prediction.map, *heat)
    write_png(folder / OVERLAYS / name, outline(picture, prediction.mask))
    write_png(folder / MASKS / name, prediction.mask)
    return PictureNames(f"{OVERLAYS}/{name}", f"{MASKS}/{name}")


def remove_pictures_from(folder: Path, number: int) -> None:
    """Remove pictures of this number and above, of images that a killed run left without a row."""
    for path in (path for name in (OVERLAYS, MASKS) for path in (folder / name).glob("*")):
        own = OWN_NAME.fullmatch(path.name)
        if own and (own["partial"] or int(own["number"]) >= number):
            path.unlink(missing_ok=True)


def short(stem: str) -> str:
    """As much of a file's name as fits into another, in valid UTF-8, without AWKWARD characters."""
    name = AWKWARD.sub("_", stem).encode("utf-8", "ignore")
    return name[:MAX_STEM_BYTES].decode("utf-8", "ignore")

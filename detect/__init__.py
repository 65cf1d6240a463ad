"""Detectors trained on normal images and synthetic anomalies: RealNet and its neighbours.

    import detect

    detector = detect.load("runs/detector")
    result = detector.predict("photo.png")

`result` has score, p_value, is_anomalous, and map and mask at the photo's own resolution.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's idle threads hold up torch's

if TYPE_CHECKING:
    from detect.prediction.predictor import Given, Predictor
    from detect.prediction.region import Region
    from synth.base.options import Precision


def load(
    model: str | Path,
    *,
    category: str | None = None,
    false_reject_rate: float | None = None,
    tile: bool | tuple[int, int] = False,
    overlap: float = 0.25,
    normals: "Given | Iterable[Given] | None" = None,
    ignore: "str | Path | Region | None" = None,
    batch_size: int | None = None,
    precision: "Precision" = "fp32",
) -> "Predictor":
    """Load a detector that `detect train` made, ready to predict on the GPU when there is one.

    `.predict(images)` takes a path, an array uint8 [H, W, 3] RGB, a Pillow image, or a list of
    such, of any size; see `detect.prediction.predictor`. The options are those of `detect predict`:
    category: whose threshold to take, of a detector of several.
    false_reject_rate: share of normal images that may be rejected, None for the stored one.
    tile: cut images into tiles of the detector's own size, or of (height, width) pixels; needs
    `normals`. normals: normal images that training has not seen, or a folder of them, to set the
    threshold on. ignore: a mask image or bool [H, W], non-zero where evidence never counts.
    batch_size: None is measured. precision: "bf16" is faster; scores move (by 0.2 at
    most where it was measured), so that the threshold is best set anew with `normals`. Raises
    UserError for a folder that is no detector and for options that are not allowed; gives a
    DataWarning where there are too few held-out images for the rate.
    """
    import warnings

    from detect.prediction.inputs import files_at
    from detect.prediction.predictor import load_predictor, require_normals
    from synth.base.errors import DataWarning

    require_normals(tile, normals)
    predictor = load_predictor(
        Path(model),
        category=category,
        false_reject_rate=false_reject_rate,
        tile=tile,
        overlap=overlap,
        ignore=ignore,
        batch_size=batch_size,
        precision=precision,
    )
    if isinstance(normals, str | Path):
        normals = files_at(Path(normals))
    if normals is not None:
        predictor = predictor.calibrated_on(normals)
    if predictor.calibration.note:
        warnings.warn(predictor.calibration.note, DataWarning, stacklevel=2)
    return predictor

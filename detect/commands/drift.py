"""`detect drift`."""

from typing import TYPE_CHECKING

from detect.commands.shared import (
    BatchSize,
    CategoryName,
    Paths,
    require_share,
    with_listed,
)
from synth.base.command import progress_bar, say, warn
from synth.base.errors import UserError
from synth.base.options import Folder, require_output, require_positive
from synth.data.catalog import require_outside

if TYPE_CHECKING:
    from detect.prediction.drift import Drift

DRIFT_EXIT_CODE = 3


def drift(
    images: Paths,
    *,
    model: Folder,
    out: Folder,
    category: CategoryName = None,
    level: float = 0.01,
    batch_size: BatchSize = None,
) -> None:
    """Compare recent images with the held-out normal ones that the threshold was set on.

    Has the camera, the light or the product changed? Then the false-reject rate need not hold any
    more. A two-sample test (Kolmogorov-Smirnov) of the image scores answers: exit code 0 is no
    drift, 3 is drift, 2 a mistake in the command. Defects among the images count as change: a few
    in a hundred do no harm. Images should be independent of each other, not frames of one scene.
    Writes drift.json and drift.png, which each run replaces.

    Args:
        images: Recent images: files; folders, searched for images; "patterns" with * ? **; - reads
            such names from stdin, one a line.
        model: What `detect train` made.
        out: drift.json and drift.png.
        category: Whose held-out scores to compare with, of a detector of several categories.
        level: Chance of a false alarm in one run: a job that runs every day at 0.01 raises three or
            four a year on average, in a row where the held-out images are an unlucky choice.
        batch_size: Images scored at once; changes speed and memory only.

    """
    require_positive(batch_size=batch_size)
    require_share(level=level)
    from detect.prediction.drift import measure_drift
    from detect.prediction.drift_plot import write_drift_plot
    from detect.prediction.inputs import find_inputs
    from detect.prediction.predictor import all_loaded, load_predictor
    from detect.prediction.video import is_video
    from synth.base.files import write_json
    from synth.images import require_images

    places = with_listed(images)
    require_outside(out, places)
    paths = find_inputs(places, out)
    if any(map(is_video, paths)):
        raise UserError("images: got a video; its frames are too alike for a test: give images")
    require_output(out)
    predictor = load_predictor(model, category=category, batch_size=batch_size)
    with progress_bar("checking images", "image") as update:
        require_images(paths, update)
    scores: list[float] = []
    with progress_bar("scoring", "image") as update:
        for score, _ in predictor.scored(all_loaded(paths)):
            scores.append(score)
            update(len(scores), len(paths))
    found = measure_drift(predictor.calibration, scores, level)
    rows = [{"file": str(path), "score": score} for path, score in zip(paths, scores, strict=True)]
    write_json(out / "drift.json", {**found.to_json(), "recent": rows})
    write_drift_plot(out / "drift.png", found)
    tell(found, len(scores))
    say(f"figure: {out / 'drift.png'}")
    if found.is_drift:
        raise SystemExit(DRIFT_EXIT_CODE)


def tell(found: "Drift", num_scored: int) -> None:
    """Print what the test found, and what it could have found."""
    say(found.finding)
    (say if found.noticeable else warn)(found.power)
    say(
        f"{found.num_rejected} of {num_scored} are above the threshold; so many or more have a "
        f"chance of {found.chance:.2g} without drift"
    )

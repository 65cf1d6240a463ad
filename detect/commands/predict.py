"""`detect predict`."""

from pathlib import Path
from typing import Annotated

import tyro

from synth.command import Folder, progress_bar, require_output, require_positive, say

Paths = Annotated[
    tuple[Path, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint=""),
]


def predict(images: Paths, *, model: Folder, out: Folder, batch_size: int = 16) -> None:
    """Score images: scores.csv with a verdict each, and an overlay picture each.

    Args:
        images: Image files, or folders that are searched for them.
        model: What `detect train` made.
        out: scores.csv and overlays/.
        batch_size: Images scored at once; changes speed and memory only.

    """
    require_positive(batch_size=batch_size)
    from detect.checkpoint import load_detector
    from detect.evaluation.results import write_scores
    from detect.prediction.overlays import find_images, write_overlays
    from detect.scoring import detector_scorer, score_files
    from synth.device import make_accelerator
    from synth.images import require_images

    paths = find_images(images)
    require_output(out)
    device = make_accelerator("fp32").device
    trained = load_detector(model, device)
    with progress_bar("checking images", "image") as update:
        require_images(paths, update)
    scorer = detector_scorer(trained.detector, device)
    with progress_bar("scoring", "image") as update:
        scored = score_files(
            scorer, paths, trained.image_size, batch_size=batch_size, progress=update
        )
    rows = [(path, "", float(score)) for path, score in zip(paths, scored.scores, strict=True)]
    write_scores(out / "scores.csv", rows, trained.calibration)
    write_overlays(out / "overlays", paths, scored, trained.calibration.threshold, progress_bar)
    rejected = sum(trained.calibration.rejects(score) for _, _, score in rows)
    threshold = trained.calibration.threshold
    say(f"{rejected} of {len(paths)} images are anomalous (score above {threshold:.4g})")
    say(f"overlays: {out / 'overlays'}\nscores: {out / 'scores.csv'}")

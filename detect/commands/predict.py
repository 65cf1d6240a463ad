"""`detect predict`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from detect.commands.shared import (
    BatchSize,
    CategoryName,
    Paths,
    Rate,
    require_share,
    with_listed,
)
from synth.base.command import progress_bar, say, warn
from synth.base.errors import UserError
from synth.base.files import printable
from synth.base.options import Folder, OptionalFolder, Precision, require_output, require_positive
from synth.data.catalog import require_outside

if TYPE_CHECKING:
    from detect.prediction.log import ScoreLog
    from detect.prediction.predictor import Predictor
    from detect.prediction.run import Run

TileSize = Annotated[
    tuple[int, int] | None,
    tyro.conf.arg(metavar="HEIGHT WIDTH", help_behavior_hint="(default: the detector's own)"),
]
OptionalFile = Annotated[
    Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")
]
Overlap = Annotated[
    float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: 0.25)")
]


def predict(
    images: Paths,
    *,
    model: Folder,
    out: Folder,
    category: CategoryName = None,
    false_reject_rate: Rate = None,
    watch: bool = False,
    every: int = 1,
    tile: bool = False,
    tile_size: TileSize = None,
    overlap: Overlap = None,
    normals: OptionalFolder = None,
    ignore: OptionalFile = None,
    pictures: Literal["all", "anomalous", "none"] = "all",
    coco: OptionalFile = None,
    batch_size: BatchSize = None,
    precision: Precision = "fp32",
) -> None:
    """Score images: a verdict, a p-value, an overlay and a mask each.

    Rows are written as they come, to scores.csv and scores.jsonl; the same command goes on after an
    interruption, and scores what is new or has changed. What cannot be read has a row that says so,
    and the exit code is 2. An image is anomalous when its score is above the threshold; its p-value
    is the share of normal images that score as high. A mask is empty if and only if the verdict is
    "normal"; otherwise it holds the pixels above the threshold in all regions that would reject the
    image alone. The colours of overlays mean the same in every image: clear up to the median score
    of the held-out normal images, the middle of the scale at the threshold.

    Args:
        images: Image files; folders, searched for images; "patterns" with * ? **; video files; -
            reads such names from stdin, one a line.
        model: What `detect train` made.
        out: scores.csv, scores.jsonl, overlays/ and masks/.
        category: Whose threshold to take, of a detector of several categories.
        false_reject_rate: Share of normal images that may be called anomalous; sets the threshold
            from the detector's held-out scores, nothing is trained.
        watch: Wait for images in the one folder named, score each once it is completely written,
            and end with Ctrl-C. A file that is replaced under its name is scored again.
        every: Of videos, score every n-th frame.
        tile: Cut images into overlapping tiles instead of squeezing them to the detector's size.
            For detectors that were trained on crops of the same scale. The stored threshold is of
            whole images and does not hold: give --normals.
        tile_size: Pixels of an image in a tile, which is then brought to the detector's size.
        overlap: Least share of a tile that the next one covers too, up to 0.5.
        normals: Normal images that training has not seen: scored like the others, they set the
            threshold in place of the stored scores.
        ignore: A mask image with the proportions of the images: what is not black in it is ignored
            (an edge, a fixture, the background). The stored threshold keeps its promise; --normals
            sets a closer one.
        pictures: Whose overlays and masks are written.
        coco: A JSON file to write at the end: boxes and masks of the anomalous regions in COCO's
            format.
        batch_size: Images scored at once; changes speed and memory only.
        precision: Arithmetic. bf16 is faster but moves scores, by 0.03 on average and 0.2 at most
            where it was measured; the stored threshold was set in fp32: --normals sets it anew.

    """
    require_positive(batch_size=batch_size, every=every)
    require_share(false_reject_rate=false_reject_rate)
    if not tile and (tile_size or overlap is not None):
        raise UserError("--tile-size, --overlap: not used without --tile; add it or leave them out")
    if coco and pictures != "all":
        raise UserError(f"--coco: needs --pictures all, got {pictures}; leave --pictures out")
    from detect.prediction.inputs import files_at, find_inputs

    folder = folder_to_watch(images) if watch else None
    places = images if folder else with_listed(images)
    require_outside(out, places)
    paths = [] if folder else find_inputs(places, out)
    held = files_at(normals) if normals else []
    require_output(out)
    if coco:
        require_output(coco.parent, "--coco")
    # torch comes last: a wrong path is told at once
    from detect.prediction import run
    from detect.prediction.coco import write_coco
    from detect.prediction.log import ScoreLog
    from detect.prediction.overlays import remove_pictures_from
    from detect.prediction.predictor import load_predictor, require_normals
    from detect.prediction.tiles import OVERLAP
    from detect.prediction.video import is_video
    from synth.base.locks import sole_user

    require_normals(tile, normals)
    predictor = load_predictor(
        model,
        category=category,
        false_reject_rate=false_reject_rate,
        tile=tile and (tile_size or True),
        overlap=OVERLAP if overlap is None else overlap,
        ignore=ignore,
        batch_size=batch_size,
        precision=precision,
    )
    config = run.description(model, predictor, held, every, pictures, precision)
    with sole_user(out):
        is_own = claim(out, config, has_normals=bool(held))
        log = ScoreLog(out, with_frames=any(map(is_video, paths)))
        predictor = with_threshold(predictor, out, held, ignore)
        if is_own:
            remove_pictures_from(out, log.next_number)
        with log:
            work = run.Run(predictor, log, out, pictures)
            faults = score_files(work, paths, every) if folder is None else []
            if folder is not None:
                watch_folder(work, folder)
    if coco:
        say(f"{write_coco(coco, out)} anomalous regions: {coco}")
    tell_end(log, out)
    if faults:
        first = f"the first: {faults[0]}"
        raise UserError(f"{len(faults)} of {len(paths)} images cannot be read, {first}")
    if folder is not None and (unreadable := num_unreadable(log)):
        total = log.num_scored + unreadable
        raise UserError(f"{unreadable} of {total} images cannot be read; their rows say so")


def claim(out: Path, config: Mapping[str, Any], *, has_normals: bool) -> bool:
    """Mark the folder as one of this prediction; whether it holds earlier rows.

    Raises UserError for rows of something else, and as `claim_folder`.
    """
    from detect.prediction.log import LOG_FILE, TABLE_FILE
    from detect.prediction.run import CONFIG_FILE, NORMALS_FILE
    from synth.base.claims import claim_folder

    is_own = (out / CONFIG_FILE).exists()
    foreign = [name for name in (LOG_FILE, TABLE_FILE) if (out / name).exists()]
    if not is_own and foreign:
        raise UserError(
            f"{out / foreign[0]}: not known to be of a prediction, {CONFIG_FILE} is not "
            "beside it; give another --out"
        )
    if not claim_folder(out, config, CONFIG_FILE, out / LOG_FILE) and has_normals:
        (out / NORMALS_FILE).unlink(missing_ok=True)  # of other normal images
    return is_own


def with_threshold(
    predictor: "Predictor", out: Path, normals: Sequence[Path], ignore: Path | None
) -> "Predictor":
    """Set the threshold on normal images where there are any, and say what it promises."""
    from detect.prediction.run import calibrated

    if normals:
        with progress_bar("calibrating", "image") as update:
            predictor = calibrated(out, predictor, normals, update)
    elif ignore:
        say("threshold of whole images: it keeps its promise; --normals sets a closer one")
    if predictor.calibration.note:
        warn(predictor.calibration.note)
    say(predictor.calibration.promise)
    return predictor


def score_files(work: "Run", paths: Sequence[Path], every: int) -> list[str]:
    """Score files, and tell how fast; why some could not be read."""
    from detect.prediction.run import predict_files

    with progress_bar("scoring", "image", continues=True) as update:
        done = predict_files(work, paths, every, update)
    if done.num_images:
        say(f"{done.throughput} (batches of {work.predictor.scorer.batch_size})")
    others = work.log.known.keys() - set(map(str, paths))
    if others:
        say(f"other files, with rows of earlier runs: {len(others)}")
    return done.faults


def num_unreadable(log: "ScoreLog") -> int:
    """How many rows are of files that could not be read."""
    return sum(not known.is_scored for known in log.known.values())


def tell_end(log: "ScoreLog", out: Path) -> None:
    """Print what was found, and where it is."""
    from detect.prediction.overlays import OVERLAYS

    unreadable = num_unreadable(log)
    ending = f", {unreadable} could not be read" if unreadable else ""
    say(f"{log.num_anomalous} of {log.num_scored} images are anomalous{ending}")
    if (out / OVERLAYS).exists():
        say(f"overlays: {out / OVERLAYS}")
    say(f"scores: {out / 'scores.csv'}")


def folder_to_watch(images: Sequence[Path]) -> Path:
    """The one folder that is given with --watch. Raises UserError for anything else."""
    if len(images) != 1 or not images[0].is_dir():
        raise UserError("--watch: needs one folder that exists, in place of images")
    return images[0]


def watch_folder(work: "Run", folder: Path) -> None:
    """Score what appears, a line each, until Ctrl-C."""
    from detect.prediction.log import UNREADABLE
    from detect.prediction.run import predict_watched
    from detect.prediction.watch import stop_on_interrupt

    def told(row: Mapping[str, Any]) -> None:
        if row["verdict"] == UNREADABLE:
            warn(printable(row["reason"]))
        else:
            say(printable(f"{row['file']}: {row['verdict']}, score {row['score']:.4g}"))

    say(f"watching {folder}; end with Ctrl-C")
    with stop_on_interrupt() as stop:
        predict_watched(work, folder, stop, told)

"""A prediction from files to files, in the order they come, with memory for a batch."""

import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, TypeVar

from detect.calibration import Calibration
from detect.checkpoint import CALIBRATION_FILE, WEIGHTS_FILE
from detect.prediction.batches import chunks
from detect.prediction.inputs import (
    Loaded,
    Unreadable,
    content_of,
    count_inputs,
    num_pixels,
    read_inputs,
)
from detect.prediction.log import UNREADABLE, Row, ScoreLog
from detect.prediction.overlays import (
    WANTED,
    PictureChoice,
    PictureNames,
    heat_scale,
    write_pictures,
)
from detect.prediction.predictor import Prediction, Predictor
from detect.prediction.video import is_video
from detect.prediction.watch import POLL_SECONDS, Watch
from synth.base.files import read_json, reading, write_json
from synth.base.options import Precision
from synth.base.progress import Update
from synth.images import Progress

CONFIG_FILE, NORMALS_FILE = "predict.json", "normals.json"
NUM_WRITERS = min(4, os.cpu_count() or 1)
T = TypeVar("T")


class Done(NamedTuple):
    """How many images were scored in how many seconds: reading, scoring, writing.

    faults: why files could not be read.
    """

    num_images: int
    seconds: float
    faults: list[str]

    @property
    def throughput(self) -> str:
        """One line; empty where nothing was scored."""
        if not self.num_images:
            return ""
        return f"{self.num_images / self.seconds:.3g} images per second, decoding included"


def digest_of(*parts: bytes) -> str:
    """A short fingerprint."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def model_digest(model: Path) -> str:
    """Fingerprint of a detector's weights and held-out scores."""
    with (model / WEIGHTS_FILE).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").digest()
    return digest_of(weights, (model / CALIBRATION_FILE).read_bytes())


def listing(paths: Sequence[Path]) -> str:
    """How many files, and which contents, in a few words."""
    contents = (os.fsencode(path) + repr(content_of(path)).encode() for path in paths)
    return f"{len(paths)} files, {digest_of(*contents)}"


def description(
    model: Path,
    predictor: Predictor,
    normals: Sequence[Path],
    every: int,
    pictures: PictureChoice,
    precision: Precision = "fp32",
) -> dict[str, Any]:
    """What all rows of a folder depend on: `claim_folder` refuses to mix them with others."""
    tiling = predictor.tiling
    return {
        "model_digest": model_digest(model),
        "false_reject_rate": predictor.calibration.false_reject_rate,
        "held_out": digest_of(repr(predictor.calibration.scores).encode()),
        "normals": listing(normals) if normals else None,
        "tile": list(tiling.size) if tiling else None,
        "overlap": tiling.overlap if tiling else None,
        "every": every,
        "pictures": pictures,
        "precision": precision,
        **({} if predictor.region is None else {"ignore": digest_of(predictor.region.tobytes())}),
    }


def calibrated(
    folder: Path, predictor: Predictor, normals: Sequence[Path], progress: Progress
) -> Predictor:
    """With a threshold set on normal images; it is kept in the folder for a run that goes on."""
    path = folder / NORMALS_FILE
    if path.exists():
        return predictor.with_calibration(read_calibration(path))

    def told() -> Iterator[Path]:
        for done, normal in enumerate(normals, start=1):
            yield normal
            progress(done, len(normals))

    predictor = predictor.calibrated_on(told())
    write_json(path, predictor.calibration.to_json())
    return predictor


def read_calibration(path: Path) -> Calibration:
    """What `calibrated` kept. Raises UserError where it is damaged."""
    cure = "delete this one file, and the threshold is set on the normal images again"
    with reading(path, cure):
        return Calibration.from_json(read_json(path, cure))


class Run(NamedTuple):
    """A prediction into a folder: rows to `log`, pictures beside it."""

    predictor: Predictor
    log: ScoreLog
    folder: Path
    pictures: PictureChoice

    def predict(
        self, batches: Iterable[Sequence[Loaded | Unreadable]], told: Callable[[Row], None]
    ) -> Done:
        """Predict chunk by chunk; an image's row is written when its pictures are.

        told: of each row. Raises UserError for a full disk, and as `Predictor.scored`.
        """
        heat = heat_scale(self.predictor.calibration)
        num_scored, start = 0, time.perf_counter()
        faults: list[str] = []

        def written(number: int, loaded: Loaded, prediction: Prediction) -> PictureNames:
            if not WANTED[self.pictures](prediction):
                return PictureNames(None, None)
            stem, image = loaded.stem, loaded.image
            return write_pictures(self.folder, number, stem, image, prediction, heat)

        def append(row: Row) -> None:
            self.log.append(row)
            told(row)

        with ThreadPoolExecutor(NUM_WRITERS) as pool:
            for chunk in batches:
                images = [item for item in chunk if isinstance(item, Loaded)]
                predictions = list(self.predictor.judge(images))
                numbers = itertools.count(self.log.next_number)
                names = pool.map(written, numbers, images, predictions)
                for loaded, prediction, files in zip(images, predictions, names, strict=True):
                    append(self.scored_row(loaded, prediction, files))
                num_scored += len(images)
                for item in chunk:
                    if isinstance(item, Unreadable):
                        append(self.unreadable_row(item))
                        faults.append(item.reason)
        return Done(num_scored, time.perf_counter() - start, faults)

    def scored_row(self, loaded: Loaded, prediction: Prediction, files: PictureNames) -> Row:
        """A line of scores.jsonl."""
        frame = {} if loaded.frame is None else {"frame": loaded.frame, "time_s": loaded.time_s}
        return {
            "file": loaded.file,
            **frame,
            "score": prediction.score,
            "threshold": self.predictor.threshold,
            "p_value": prediction.p_value,
            "verdict": prediction.verdict,
            "overlay": files.overlay,
            "mask": files.mask,
            **self.identity(loaded),
        }

    def unreadable_row(self, item: Unreadable) -> Row:
        """A line of scores.jsonl for a file without a score."""
        return {
            "file": item.file,
            "verdict": UNREADABLE,
            "reason": item.reason,
            **self.identity(item),
        }

    def identity(self, item: Loaded | Unreadable) -> Row:
        """The next row's number, and what it was made of."""
        size, mtime_ns = item.content or (None, None)
        return {"number": self.log.next_number, "size": size, "mtime_ns": mtime_ns}


def predict_files(run: Run, paths: Sequence[Path], every: int, update: Update) -> Done:
    """Score what has no score or has changed since, reading ahead.

    What cannot be read has a row that says so, and is tried again by the next run.
    """
    log = run.log
    log.forget({str(path) for path in paths if log.is_stale(str(path), content_of(path))})
    left = [path for path in paths if is_video(path) or str(path) not in log.known]
    last = {file: known.frame for file, known in log.known.items() if known.frame is not None}
    before, first = len(paths) - len(left), log.num_rows
    total = before + count_inputs(left, every, last)
    batches = chunks(read_inputs(left, every, last), run.predictor.chunk_size, num_pixels)

    def told(_: Row) -> None:
        done = before + log.num_rows - first
        update(done, max(total, done))

    return run.predict(read_ahead(batches), told)


def predict_watched(run: Run, folder: Path, stop: Event, told: Callable[[Row], None]) -> None:
    """Score images of a folder as they appear or are replaced, until `stop`; `told` of each row."""
    log = run.log
    watch = Watch(folder, {file: row.content for file, row in log.known.items() if row.is_scored})
    while not stop.is_set():
        for chunk in chunks(watch.look(), run.predictor.chunk_size, num_pixels):
            log.forget({item.file for item in chunk})
            run.predict([chunk], told)
            if stop.is_set():
                break
        stop.wait(POLL_SECONDS)


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next is made in a thread while one is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item

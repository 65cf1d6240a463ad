"""A prediction from files to files, in the order they come, with memory for a batch."""

import hashlib
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
from detect.prediction.inputs import Loaded, count_inputs, num_pixels, read_inputs
from detect.prediction.log import UNREADABLE, Row, ScoreLog
from detect.prediction.overlays import (
    WANTED,
    PictureChoice,
    PictureNames,
    heat_scale,
    write_pictures,
)
from detect.prediction.predictor import Prediction, Predictor
from detect.prediction.watch import POLL_SECONDS, Watch
from synth.config import Precision
from synth.files import read_json, write_json
from synth.images import Progress
from synth.progress import Update

CONFIG_FILE, NORMALS_FILE = "predict.json", "normals.json"
NUM_WRITERS = min(4, os.cpu_count() or 1)
T = TypeVar("T")


class Throughput(NamedTuple):
    """How many images were scored in how many seconds: decoding, scoring, writing."""

    num_images: int
    seconds: float

    @property
    def line(self) -> str:
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
    """How many files and which, in a few words."""
    return f"{len(paths)} files, {digest_of(*(os.fsencode(path) for path in paths))}"


def description(
    model: Path,
    predictor: Predictor,
    images: Path | Sequence[Path],
    normals: Sequence[Path],
    every: int,
    pictures: PictureChoice,
    precision: Precision = "fp32",
) -> dict[str, Any]:
    """What the rows of a folder depend on: `claim_folder` refuses to mix them with others.

    images: a folder that is watched, or all files.
    """
    tiling = predictor.tiling
    return {
        "model_digest": model_digest(model),
        "false_reject_rate": predictor.calibration.false_reject_rate,
        "held_out": digest_of(repr(predictor.calibration.scores).encode()),
        "images": f"watched: {images}" if isinstance(images, Path) else listing(images),
        "normals": listing(normals) if normals else None,
        "tile": list(tiling.size) if tiling else None,
        "overlap": tiling.overlap if tiling else None,
        "every": every,
        "pictures": pictures,
        "precision": precision,
    }


def calibrated(
    folder: Path, predictor: Predictor, normals: Sequence[Path], progress: Progress
) -> Predictor:
    """With a threshold set on normal images; it is kept in the folder for a run that goes on."""
    path = folder / NORMALS_FILE
    if path.exists():
        return predictor.with_calibration(Calibration.from_json(read_json(path)))

    def told() -> Iterator[Path]:
        for done, normal in enumerate(normals, start=1):
            yield normal
            progress(done, len(normals))

    predictor = predictor.calibrated_on(told())
    write_json(path, predictor.calibration.to_json())
    return predictor


class Run(NamedTuple):
    """A prediction into a folder: rows to `log`, pictures beside it."""

    predictor: Predictor
    log: ScoreLog
    folder: Path
    pictures: PictureChoice

    def predict(
        self, batches: Iterable[Sequence[Loaded]], told: Callable[[Row], None]
    ) -> Throughput:
        """Predict chunk by chunk; an image's row is written when its pictures are.

        told: of each row. Raises UserError for a full disk.
        """
        heat = heat_scale(self.predictor.calibration)
        first, start = self.log.num_rows, time.perf_counter()

        def written(number: int, loaded: Loaded, prediction: Prediction) -> PictureNames:
            if not WANTED[self.pictures](prediction):
                return PictureNames(None, None)
            stem, image = loaded.stem, loaded.image
            return write_pictures(self.folder, number, stem, image, prediction, heat)

        with ThreadPoolExecutor(NUM_WRITERS) as pool:
            for chunk in batches:
                predictions = list(self.predictor.judge(chunk))
                numbers = range(self.log.num_rows, self.log.num_rows + len(chunk))
                names = pool.map(written, numbers, chunk, predictions)
                for loaded, prediction, files in zip(chunk, predictions, names, strict=True):
                    row = row_of(loaded, prediction, self.predictor.threshold, files)
                    self.log.append(row)
                    told(row)
        return Throughput(self.log.num_rows - first, time.perf_counter() - start)


def predict_files(run: Run, paths: Sequence[Path], every: int, update: Update) -> Throughput:
    """Score what is not done yet of the files, reading ahead. Raises UserError as `read_inputs`."""
    total = count_inputs(paths, every)
    batches = chunks(read_inputs(paths, every, run.log.done), run.predictor.chunk_size, num_pixels)

    def told(_: Row) -> None:
        update(run.log.num_rows, max(total, run.log.num_rows))

    return run.predict(read_ahead(batches), told)


def predict_watched(run: Run, folder: Path, stop: Event, told: Callable[[Row], None]) -> None:
    """Score images of a folder as they appear, until `stop`; `told` of each row."""
    watch = Watch(folder, run.log.done, run.log.unreadable)

    def readable() -> Iterator[Loaded]:
        for found in watch.look():
            if isinstance(found, Loaded):
                yield found
            else:
                row = {"file": found.file, "verdict": UNREADABLE, "reason": found.reason}
                run.log.append(row)
                told(row)

    while not stop.is_set():
        for chunk in chunks(readable(), run.predictor.chunk_size, num_pixels):
            run.predict([chunk], told)
            if stop.is_set():
                break
        stop.wait(POLL_SECONDS)


def row_of(loaded: Loaded, prediction: Prediction, threshold: float, files: PictureNames) -> Row:
    """A line of scores.jsonl."""
    place = {} if loaded.frame is None else {"frame": loaded.frame, "time_s": loaded.time_s}
    return {
        "file": loaded.file,
        **place,
        "score": prediction.score,
        "threshold": threshold,
        "p_value": prediction.p_value,
        "verdict": prediction.verdict,
        "overlay": files.overlay,
        "mask": files.mask,
    }


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next is made in a thread while one is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item

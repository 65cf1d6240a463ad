"""The Look view without a page: images that are scored once and looked at, at any threshold.

Shapes: H, W pixels of a view, the copy of an image that is shown; h, w those of the detector's map.
"""

import csv
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detect.calibration import Calibration
from detect.checkpoint import CALIBRATION_FILE
from detect.heatmap import Image, outline, overlay
from detect.prediction.batches import ScoreAndMap, chunks
from detect.prediction.inputs import Loaded, Unreadable, files_at, num_pixels
from detect.prediction.log import (
    COLUMNS,
    FRAME,
    LOG_FILE,
    TABLE_FILE,
    Row,
    csv_cells,
    open_text,
    read_rows,
)
from detect.prediction.overlays import PictureNames, heat_scale, write_pictures
from detect.prediction.predictor import Predictor
from detect.prediction.region import Region, require_aspect
from detect.prediction.run import CONFIG_FILE, NORMALS_FILE, digest_of, read_calibration
from synth.base.errors import UserError
from synth.base.files import read_json
from synth.images import Progress, read_image, resize, write_png

VIEW_PX, THUMBNAIL_PX = 1024, 320
"""Longest sides of what is shown large, and in the gallery."""
TABLE = [name for name in COLUMNS if name not in FRAME]
Named = tuple[str, Path]
"""An image file, and what to call it."""


class Shot(NamedTuple):
    """An image and its files: a view and a thumbnail to show, and where they were kept, its map.

    size: (height, width) of the image. score: of what counts; whole: of all. map: float32 [h, w] in
    a .npy. An image of a folder that is only opened has none; it has the row that the folder says
    of it, and an overlay where one was written.
    """

    name: str
    file: Path
    size: tuple[int, int]
    score: float
    whole: float
    view: Path
    thumbnail: Path
    map: Path | None = None
    row: Row | None = None
    overlay: Path | None = None

    @property
    def scored(self) -> ScoreAndMap:
        """What the detector gave for it, nothing ignored."""
        assert self.map is not None
        return self.whole, np.load(self.map)


class Session(NamedTuple):
    """One person's images, the highest score first, with their files in a folder of their own.

    predictor: None for a folder that is only opened; whole: the same with nothing ignored.
    calibration: None where the one behind such a folder is not known. faults: what could not be
    read, a line each.
    """

    folder: Path
    calibration: Calibration | None
    predictor: Predictor | None = None
    shots: tuple[Shot, ...] = ()
    faults: tuple[str, ...] = ()
    whole: Predictor | None = None

    def at(self, rate: float) -> "Session":
        """The same at another false-reject rate."""
        if self.calibration is None:
            return self
        calibration = self.calibration.at_rate(rate)
        predictor = self.predictor and self.predictor.with_calibration(calibration)
        return self._replace(calibration=calibration, predictor=predictor)

    def ignoring(self, region: Region | None) -> "Session":
        """The same without the evidence of a region, or for None with all of it.

        Raises UserError for a folder that is only opened, a region that leaves nothing to look at,
        and for images of other proportions.
        """
        if self.whole is None:
            raise UserError("a folder that is only opened cannot be scored anew; score its images")
        predictor = self.whole if region is None else self.whole.ignoring(region)
        shots = []
        for shot in self.shots:
            if region is not None:
                require_aspect(region, shot.size, shot.name)
            shots.append(shot._replace(score=predictor.outside(shot.scored)[0]))
        same = self._replace(predictor=predictor, calibration=predictor.calibration, shots=())
        return same.joined(shots, [])

    def joined(self, shots: Iterable[Shot], faults: Iterable[str]) -> "Session":
        """The same with more images and faults."""
        ranked = sorted((*self.shots, *shots), key=lambda shot: -shot.score)
        return self._replace(shots=tuple(ranked), faults=(*self.faults, *faults))


# Images into a session


def categories(detector: Path) -> list[str]:
    """The categories that have a threshold of their own. Raises UserError as `read_json`."""
    return list(read_json(detector / CALIBRATION_FILE).get("categories", {}))


def images_in(folder: Path) -> list[Named]:
    """The images of a folder and below. Raises UserError as `files_at`."""
    paths = files_at(folder)
    return [(path.relative_to(folder.resolve()).as_posix(), path) for path in paths]


def score(predictor: Predictor, images: Sequence[Named], folder: Path) -> Iterator[Session]:
    """Score files; the session so far after each batch. Raises UserError as `Predictor.scored`."""
    names = {str(path): name for name, path in images}
    session = Session(folder, predictor.calibration, predictor, whole=predictor)
    for chunk in chunks(map(load, images), predictor.chunk_size, num_pixels):
        loaded = [item for item in chunk if isinstance(item, Loaded)]
        faults = [item.reason for item in chunk if isinstance(item, Unreadable)]
        stems = (folder / f"{number:06d}" for number in itertools.count(len(session.shots)))
        results = zip(loaded, predictor.scored(loaded), stems, strict=False)
        shots = [
            keep_map(make_shot(names[item.file], item, score, stem), anomaly_map)
            for item, (score, anomaly_map), stem in results
        ]
        session = session.joined(shots, faults)
        yield session


def load(image: Named) -> Loaded | Unreadable:
    """Decode a file; what is said of it calls it by its name."""
    name, path = image
    try:
        return Loaded(str(path), read_image(path))
    except UserError as error:
        return Unreadable(str(path), str(error).replace(str(path), name))


def make_shot(name: str, loaded: Loaded, score: float, stem: Path) -> Shot:
    """Write an image's view and thumbnail beside `stem`."""
    view, thumbnail = stem.with_suffix(".png"), stem.with_suffix(".small.png")
    for path, side in ((view, VIEW_PX), (thumbnail, THUMBNAIL_PX)):
        write_png(path, fitted(loaded.image, side))
    height, width = loaded.image.shape[:2]
    return Shot(name, Path(loaded.file), (height, width), score, score, view, thumbnail)


def keep_map(shot: Shot, anomaly_map: NDArray[np.float32]) -> Shot:
    """Write an image's map beside its view."""
    path = shot.view.with_suffix(".npy")
    np.save(path, anomaly_map)
    return shot._replace(map=path)


def fitted(image: Image, side: int, *, enlarge: bool = False) -> Image:
    """An image whose longest side has at most `side` pixels, or with `enlarge` exactly so many."""
    scale = side / max(image.shape[:2])
    scale = scale if enlarge else min(1.0, scale)
    height, width = (max(1, round(scale * length)) for length in image.shape[:2])
    return resize(image, (height, width))


def open_prediction(place: Path, detectors: Iterable[Path], folder: Path) -> Iterator[Session]:
    """Open what `detect predict` wrote; the session so far after each row. Nothing is changed.

    An image that is gone, and a frame of a video, is shown by its overlay. Raises UserError as
    `read_rows`.
    """
    session = Session(folder, calibration_of(place, detectors))
    for row in read_rows(place / LOG_FILE):
        name = Path(row["file"]).name
        overlay = place / row["overlay"] if row.get("overlay") else None
        item = load((name, Path(row["file"])))
        if isinstance(item, Unreadable) and overlay is not None:
            item = load((name, overlay))
        if isinstance(item, Unreadable):
            session = session.joined([], [row.get("reason") or item.reason])
        else:
            shot = make_shot(name, item, row["score"], folder / f"{row['number']:06d}")
            session = session.joined([shot._replace(row=row, overlay=overlay)], [])
        yield session


def calibration_of(place: Path, detectors: Iterable[Path]) -> Calibration | None:
    """The held-out scores behind a prediction's threshold; None where no detector has them."""
    about = read_json(place / CONFIG_FILE)
    kept = [place / NORMALS_FILE, *(detector / CALIBRATION_FILE for detector in detectors)]
    for calibration in (read_calibration(path) for path in kept if path.exists()):
        if digest_of(repr(calibration.scores).encode()) == about.get("held_out"):
            return calibration.at_rate(about["false_reject_rate"])
    return None


# What is shown


def row_of(session: Session, shot: Shot) -> Row:
    """What scores.csv says of an image at the session's threshold."""
    calibration = session.calibration
    if calibration is None:
        return {**(shot.row or {}), "file": shot.name}
    return {
        "file": shot.name,
        "score": shot.score,
        "threshold": calibration.threshold,
        "p_value": calibration.p_value(shot.score),
        "verdict": "anomalous" if calibration.rejects(shot.score) else "normal",
    }


def caption(session: Session, shot: Shot) -> str:
    """Verdict, p-value and name of an image."""
    row = row_of(session, shot)
    mark = "▲ " if row["verdict"] == "anomalous" else ""
    return f"{mark}{row['verdict']}, p {row['p_value']:.2g}\n{shot.name}"


def counts(session: Session) -> str:
    """How many images are anomalous, in a line."""
    verdicts = [row_of(session, shot)["verdict"] for shot in session.shots]
    return f"{verdicts.count('anomalous')} of {len(verdicts)} images are anomalous"


def promises(session: Session) -> list[str]:
    """What the threshold promises, and what its held-out images can, in lines."""
    calibration = session.calibration
    if calibration is None:
        return ["Verdicts as they were written; the detector is not below --runs, so that the rate "
                "cannot be moved"]  # fmt: skip
    n = len(calibration.scores)
    best = f"{n} held-out images can promise a rate of {1 / (n + 1):.2%} at best"
    remarks = [*ignored_share(session), *hidden_overlays(session)]
    return [calibration.promise, calibration.note or best, *remarks]


def ignored_share(session: Session) -> Iterator[str]:
    """How much of every image is ignored, where any of it is."""
    predictor = session.predictor
    if predictor is not None and predictor.region is not None and predictor.region.any():
        yield f"{predictor.region.mean():.1%} of every image is ignored"


def hidden_overlays(session: Session) -> Iterator[str]:
    """Why overlays that were written are not shown, where they are not."""
    if any(shot.overlay is not None and not as_written(session, shot) for shot in session.shots):
        yield ("Heat maps and outlines are hidden: they were drawn for another threshold. To see "
               "them at this rate, score the images")  # fmt: skip


def as_written(session: Session, shot: Shot) -> bool:
    """Whether an image of an opened folder is looked at with the threshold it was written with."""
    calibration, row = session.calibration, shot.row or {}
    return calibration is None or row.get("threshold") == calibration.threshold


def enlarged(shot: Shot) -> Image:
    """An image as it is shown large, uint8 [H, W, 3] RGB; its longest side has VIEW_PX."""
    return fitted(read_image(shot.view), VIEW_PX, enlarge=True)


def pictures(session: Session, shot: Shot, opacity: float) -> tuple[Image, Image]:
    """The view enlarged, and the same under its heat map, the mask outlined: uint8 [H, W, 3] RGB.

    opacity: in [0, 1], times that of the overlays that `detect predict` writes.
    """
    image = enlarged(shot)
    mask = np.zeros(image.shape[:2], np.bool_)
    heated = image
    if session.predictor is not None:
        prediction = session.predictor.judged(shot.scored, image.shape)
        heat = heat_scale(session.predictor.calibration)
        heated, mask = overlay(image, prediction.map, *heat), prediction.mask
    elif shot.overlay is not None and as_written(session, shot):
        heated = resize(read_image(shot.overlay), (image.shape[0], image.shape[1]))
    mixed = opacity * heated.astype(np.float32) + (1 - opacity) * image
    return image, outline(np.rint(mixed).astype(np.uint8), mask)


# Download


def write_zip(session: Session, path: Path, progress: Progress) -> None:
    """Write scores.csv, and of scored images overlays/ and masks/ at their own size, as one zip."""
    with tempfile.TemporaryDirectory(dir=session.folder) as name:
        folder, rows = Path(name), []
        for done, shot in enumerate(session.shots, start=1):
            files = write_own_pictures(session, shot, done - 1, folder)
            rows.append({**row_of(session, shot), **files._asdict()})
            progress(done, len(session.shots))
        with open_text(folder / TABLE_FILE, "w") as file:
            table = csv.writer(file)
            table.writerow(TABLE)
            table.writerows(csv_cells(row, TABLE) for row in rows)
        shutil.make_archive(str(path.with_suffix("")), "zip", folder)


def write_own_pictures(session: Session, shot: Shot, number: int, folder: Path) -> PictureNames:
    """Write overlay and mask of a scored image; none of one that was only opened."""
    if session.predictor is None:
        return PictureNames(None, None)
    image = read_image(shot.file)
    prediction = session.predictor.judged(shot.scored, image.shape)
    heat = heat_scale(session.predictor.calibration)
    return write_pictures(folder, number, Path(shot.name).stem, image, prediction, heat)

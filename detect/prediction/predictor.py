"""A trained detector in memory: images in, verdicts and maps out.

    import detect

    detector = detect.load("runs/detector")
    result = detector.predict("photo.png")

Shapes: an image has H x W pixels; the map that its score comes from h x w: the detector's own size,
or with tiles the image's.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image as PillowImage

from detect.calibration import Calibration, calibrate
from detect.checkpoint import load_detector
from detect.evaluation.measure import native_map
from detect.heatmap import Image
from detect.pooling import image_scores, pooling_window, rejected_windows
from detect.prediction.batches import BatchScorer, ScoreAndMap, chunks, measured_batch_size
from detect.prediction.inputs import Loaded, num_pixels
from detect.prediction.region import Region, as_region, at_size, require_aspect, without
from detect.prediction.tiles import OVERLAP, Tiling, tiled_map
from detect.scoring import detector_scorer
from synth.base.device import default_device
from synth.base.errors import UserError
from synth.base.options import Precision
from synth.images import MIN_SIDE_PX, from_pillow, read_image

Given = str | Path | Image | PillowImage
"""An image: a file, uint8 [H, W, 3] RGB, or a Pillow image."""


class Prediction(NamedTuple):
    """What a detector says about one image.

    score: higher is more anomalous. p_value: the share of normal images that score as high.
    is_anomalous: whether the score is above the threshold. map: float32 [H, W], a score per pixel
    at the image's own resolution. mask: bool [H, W], where the anomaly is; see `anomaly_mask`.
    """

    score: float
    p_value: float
    is_anomalous: bool
    map: NDArray[np.float32]
    mask: NDArray[np.bool_]

    @property
    def verdict(self) -> str:
        """The word for it: "anomalous" or "normal"."""
        return "anomalous" if self.is_anomalous else "normal"


class Predictor:
    """Predicts with one detector, one threshold and one way to cut images.

    calibration: the held-out scores and the rate behind the threshold. tiling: None brings whole
    images to the detector's size; otherwise they are cut and keep their own resolution. name: what
    errors call the detector. pooled: as `Detector.pooled`.
    """

    def __init__(
        self,
        scorer: BatchScorer,
        calibration: Calibration,
        tiling: Tiling | None = None,
        name: str = "the detector",
        *,
        pooled: bool = True,
    ) -> None:
        self.scorer, self.calibration, self.tiling, self.name = scorer, calibration, tiling, name
        self.pooled = pooled
        self.region: Region | None = None  # to ignore

    @property
    def threshold(self) -> float:
        """An image with a higher score is anomalous."""
        return self.calibration.threshold

    @overload
    def predict(self, images: Given) -> Prediction: ...
    @overload
    def predict(self, images: Sequence[Given]) -> list[Prediction]: ...
    def predict(self, images: Given | Sequence[Given]) -> Prediction | list[Prediction]:
        """Predict one image, or a list of them at once.

        images: a path, an array uint8 [H, W, 3] RGB or a Pillow image, or a list of such, each of
        any size. A list gives a list, in its order. Raises UserError for what is no such image, and
        as `scored`.
        """
        results = list(self.stream(images))
        return results[0] if is_one(images) else results

    def stream(self, images: Given | Iterable[Given]) -> Iterator[Prediction]:
        """Predict images one after the other; neither they nor the results pile up in memory."""
        for chunk in chunks(all_loaded(images), self.chunk_size, num_pixels):
            yield from self.judge(chunk)

    @property
    def chunk_size(self) -> int:
        """How many images to decode ahead: a batch, or with tiles one image."""
        return 1 if self.tiling else self.scorer.batch_size

    def judge(self, images: Sequence[Loaded]) -> Iterator[Prediction]:
        """Predict decoded images. Raises as `scored`."""
        for loaded, scored in zip(images, self.scored(images), strict=True):
            yield self.judged(scored, loaded.image.shape)

    def judged(self, scored: ScoreAndMap, shape: tuple[int, ...]) -> Prediction:
        """What follows for an image of `shape`, (H, W, ...), from what `scored` gave for it."""
        score, anomaly_map = self.outside(scored)
        rejected = self.calibration.rejects(score)
        native = native_map(anomaly_map, shape)
        mask = np.zeros(native.shape, np.bool_)
        if rejected:
            level, window = self.calibration.map_threshold, self.window(anomaly_map)
            mask = anomaly_mask(anomaly_map, native, level, window, self.region)
        return Prediction(score, self.calibration.p_value(score), rejected, native, mask)

    def outside(self, scored: ScoreAndMap) -> ScoreAndMap:
        """The score and the map without the region to ignore."""
        if self.region is None:
            return scored
        anomaly_map = without(scored[1], self.region)
        return self.peak(anomaly_map), anomaly_map

    def scored(self, images: Iterable[Loaded]) -> Iterator[ScoreAndMap]:
        """The images' scores, and the maps float32 [h, w] that they come from, nothing ignored.

        Raises UserError, naming the image, where they are no finite numbers: no verdict would hold;
        and for an image of other proportions than a region to ignore.
        """
        names: deque[str] = deque()  # of images that were read and are not scored yet

        def pixels() -> Iterator[Image]:
            for loaded in images:
                if self.region is not None:
                    require_aspect(self.region, loaded.image.shape, loaded.name)
                names.append(loaded.name)
                yield loaded.image

        for score, anomaly_map in self.maps(pixels()):
            name = names.popleft()
            if not (math.isfinite(score) and np.isfinite(anomaly_map).all()):
                raise UserError(
                    f"{name}: {self.name} gives NaN or infinity in place of a score; its weights "
                    "are damaged: copy it again or train again"
                )
            yield score, anomaly_map

    def maps(self, images: Iterable[Image]) -> Iterator[ScoreAndMap]:
        """Score images uint8 [H, W, 3], whole or in tiles; nothing is checked."""
        if self.tiling is None:
            yield from self.scorer(images)
            return
        for image in images:
            of_tiles: list[float] = []
            joined = tiled_map(image, self.tiling, partial(self.tile_maps, scores=of_tiles))
            yield self.peak(joined) if self.pooled else max(of_tiles), joined

    def tile_maps(
        self, tiles: Iterable[Image], scores: list[float]
    ) -> Iterator[NDArray[np.float32]]:
        """The tiles' maps, each as large as its tile; their scores are added to `scores`."""
        assert self.tiling is not None
        for score, anomaly_map in self.scorer(tiles):
            scores.append(score)
            yield native_map(anomaly_map, self.tiling.size)

    def peak(self, anomaly_map: NDArray[np.float32]) -> float:
        """The pooled map."""
        return float(image_scores(torch.from_numpy(anomaly_map)[None], self.window(anomaly_map)))

    def window(self, anomaly_map: NDArray[np.float32]) -> int:
        """Side of the window that scores are pooled over: as large in an image as in a tile."""
        h, w = anomaly_map.shape
        return min(pooling_window(*(self.tiling.size if self.tiling else (h, w))), h, w)

    def calibrated_on(self, normals: Given | Iterable[Given]) -> "Predictor":
        """The same with its threshold set on normal images that training has not seen."""
        scores, peaks = [], []
        for score, anomaly_map in map(self.outside, self.scored(all_loaded(normals))):
            scores.append(score)
            peaks += [] if self.pooled else [self.peak(anomaly_map)]
        rate = self.calibration.false_reject_rate
        return self.with_calibration(calibrate(scores, rate, peaks))

    def with_calibration(self, calibration: Calibration) -> "Predictor":
        """The same with another threshold."""
        other = copy(self)
        other.calibration = calibration
        return other

    def ignoring(self, region: str | Path | Region) -> "Predictor":
        """The same without the evidence of a region: a mask image, or bool [H, W].

        An image's score is then its map, pooled outside the region, which is at most the pool of
        the whole map. So the threshold of whole maps keeps its promise; `calibrated_on` sets a
        closer one. Raises UserError as `as_region`.
        """
        calibration = self.calibration
        rate = calibration.false_reject_rate
        other = self.with_calibration(calibrate(calibration.map_scores, rate))
        other.region, other.pooled = as_region(region), True
        return other


def load_predictor(
    model: Path,
    *,
    category: str | None = None,
    false_reject_rate: float | None = None,
    tile: bool | tuple[int, int] = False,
    overlap: float = OVERLAP,
    ignore: str | Path | Region | None = None,
    batch_size: int | None = None,
    precision: Precision = "fp32",
) -> Predictor:
    """Load what `detect train` made. Raises UserError as `load_detector`.

    category: whose threshold to take of a detector of several; None is that of all together.
    false_reject_rate: None is the rate that is stored with it. tile: True cuts images into tiles of
    the detector's own size, (height, width) into others, which are brought to that size; the
    threshold then holds only after `calibrated_on`. ignore: a region without evidence, as
    `Predictor.ignoring`. batch_size: None is measured.
    precision: of convolutions; the stored threshold was set in fp32 (see `packed`).
    """
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size > 0):
        raise UserError(f"batch_size: got {batch_size}, must be 1 or more")
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise UserError(f"precision: got {precision}, allowed are {known}")
    device = default_device()
    trained = load_detector(model, device)
    if category is not None and category not in trained.by_category:
        known = ", ".join(trained.by_category) or "one threshold only"
        raise UserError(f"--category: got {category}, but {model} has {known}")
    stored = trained.calibration if category is None else trained.by_category[category]
    calibration = stored.at_rate(false_reject_rate)
    size = None if tile is False else tile_size(tile, trained.image_size)
    tiling = Tiling(size=size, overlap=overlap) if size else None
    score = detector_scorer(trained.detector, device, precision)
    batch_size = batch_size or measured_batch_size(score, trained.image_size, device)
    scorer = BatchScorer(score, trained.image_size, batch_size)
    pooled = trained.detector.pooled
    predictor = Predictor(scorer, calibration, tiling, name=str(model), pooled=pooled)
    return predictor if ignore is None else predictor.ignoring(ignore)


def tile_size(tile: object, own: tuple[int, int]) -> tuple[int, int]:
    """What `tile` says: (height, width); `own` is the detector's. Raises UserError for neither."""
    match tile:
        case True:
            return own
        case (int(height), int(width)):
            return height, width
        case _:
            raise UserError(f"tile: got {tile}, allowed are True, False and (height, width)")


def require_normals(tile: object, normals: object) -> None:
    """Raise UserError for tiles without normal images to set their threshold on."""
    if tile and normals is None:
        raise UserError(
            "--tile: needs --normals, normal images that training has not seen: the stored "
            "threshold is of whole images and promises nothing for tiles"
        )


def anomaly_mask(
    anomaly_map: NDArray[np.float32],
    native: NDArray[np.float32],
    threshold: float,
    window: int,
    ignored: Region | None = None,
) -> NDArray[np.bool_]:
    """Where a rejected image is anomalous: bool [H, W], by the rule that rejected it.

    Marked are the windows whose mean over the map, float32 [h, w], is above `threshold`, the
    calibration's `map_threshold`; of these the pixels that are above it themselves, at the image's
    own resolution (native, float32 [H, W]), and the highest of them in any case. So a mask is empty
    if and only if the image is accepted, whatever its score comes from. Nothing is marked inside a
    region that is ignored.
    """
    windows = rejected_windows(torch.from_numpy(anomaly_map)[None], threshold, window)[0].numpy()
    region = at_size(windows, native.shape)
    if ignored is not None:
        counted = ~at_size(ignored, native.shape)
        region = region & counted if (region & counted).any() else counted
    return region & ((native > threshold) | (native == native[region].max()))


def is_one(images: object) -> bool:
    """Whether it is one image, or what is none at all, rather than several."""
    if isinstance(images, np.ndarray):
        return images.ndim <= 3
    return isinstance(images, str | Path | PillowImage) or not isinstance(images, Iterable)


def all_loaded(images: Given | Iterable[Given]) -> Iterator[Loaded]:
    """Decode or check images one by one; errors call those without a file by their number."""
    several = cast("Iterable[Given]", [images] if is_one(images) else images)
    for number, image in enumerate(several):
        name = str(image) if isinstance(image, str | Path) else f"images[{number}]"
        yield Loaded(name, as_pixels(image))


def as_pixels(image: Given) -> Image:
    """Decode or check an image: uint8 [H, W, 3] RGB. Raises UserError for anything else."""
    if isinstance(image, str | Path):
        if Path(image).is_dir():
            raise UserError(f"images: got the folder {image}; give the list of its images")
        return read_image(Path(image))
    if isinstance(image, PillowImage):
        return from_pillow(image)
    got = type(image).__name__
    if isinstance(image, np.ndarray):
        got = f"an array {image.dtype} {list(image.shape)}"
        is_rgb = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        if is_rgb and min(image.shape[:2]) >= MIN_SIDE_PX:
            return image
    raise UserError(
        f"images: got {got}, allowed are paths, Pillow images and arrays uint8 [H, W, 3] RGB of "
        f"{MIN_SIDE_PX} pixels or more a side"
    )

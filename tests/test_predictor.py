"""Prediction in memory: `detect.load(...).predict(...)`."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectors import NUM_HELD_OUT, write_detector
from PIL import Image
from products import normal_image
from torch import Tensor

import detect
from detect.calibration import Calibration, calibrate
from detect.detector import Detector, Scores
from detect.pooling import image_scores
from detect.prediction import batches
from detect.prediction.batches import BatchScorer, chunks, measured_batch_size
from detect.prediction.predictor import Prediction, Predictor, anomaly_mask
from detect.prediction.tiles import Tiling
from detect.scoring import detector_scorer
from synth.base.errors import DataWarning, UserError
from synth.images import resize, write_png

CPU = torch.device("cpu")


class Brightness(Detector):
    """Scores by brightness, pooled as every detector; counts the images of each call."""

    def __init__(self, most: int = 1000):
        super().__init__()
        self.calls: list[int] = []
        self.most = most

    def forward(self, images: Tensor) -> Scores:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.calls.append(len(images))
        maps = images.mean(dim=1)
        return Scores(image_scores(maps), maps)


def by_brightness(threshold: float = 0.6, batch_size: int = 4, **options) -> Predictor:
    score = detector_scorer(Brightness(**options), CPU)
    return Predictor(BatchScorer(score, (64, 64), batch_size), calibrate([0.1, threshold], 0.34))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def detector(model) -> Predictor:
    return detect.load(model, batch_size=3)


def test_three_lines(model):
    detector = detect.load(model)
    result = detector.predict(normal_image(0, (50, 70)))
    assert isinstance(result, Prediction)
    assert result.map.shape == result.mask.shape == (50, 70)
    assert (result.map.dtype, result.mask.dtype) == (np.float32, np.bool_)
    assert result.is_anomalous == (result.score > detector.threshold)
    assert result.verdict == ("anomalous" if result.is_anomalous else "normal")
    assert result.p_value == detector.calibration.p_value(result.score)
    assert detector.predict([]) == []


def test_normals_may_be_a_folder(model, tmp_path):
    images = [normal_image(n, (64, 64)) for n in range(5)]
    for n, image in enumerate(images):
        write_png(tmp_path / f"{n}.png", image)
    options = {"batch_size": 1, "false_reject_rate": 0.2}
    scores = detect.load(model, normals=str(tmp_path), **options).calibration.scores
    assert scores == detect.load(model, normals=images, **options).calibration.scores
    with pytest.raises(UserError, match="no such file or folder"):
        detect.load(model, normals=tmp_path / "absent")


def test_bf16_is_another_arithmetic_near_fp32(model, detector):
    image = normal_image(1, (50, 70))
    exact = detector.predict(image)
    rounded = detect.load(model, precision="bf16", batch_size=1).predict(image)
    assert exact.score != rounded.score
    assert rounded.score == pytest.approx(exact.score, abs=0.05)


def test_import_loads_no_torch():
    code = "import sys, detect; print('torch' in sys.modules, 'cv2' in sys.modules, detect.load)"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert told.stdout.startswith("False False <function load")


def test_paths_arrays_and_pillow_images_are_the_same_image(detector, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    path = tmp_path / "a.png"
    with Image.open(path) as opened:
        results = detector.predict([path, str(path), image, opened, Image.fromarray(image)])
    alone = detector.predict(path)
    for result in results:
        assert result.score == pytest.approx(alone.score, rel=1e-5)
        np.testing.assert_allclose(result.map, alone.map, atol=1e-6)
    stacked = detector.predict(np.stack([image, image]))
    assert len(stacked) == 2


def test_a_turned_pillow_image_is_seen_upright(detector, tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    from_path = detector.predict(tmp_path / "turned.png")
    assert from_path.map.shape == (30, 40)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(detector.predict(opened).map, from_path.map)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((4, 9, 3), np.uint8),
        [3],
        None,
        3,
        [None],
    ],
)
def test_what_is_no_image_is_named(detector, image):
    with pytest.raises(UserError, match=r"images: got .*, allowed are paths, Pillow images"):
        detector.predict(image)


def test_a_folder_is_no_image(detector, tmp_path):
    with pytest.raises(UserError, match=r"images: got the folder .*; give the list of its images"):
        detector.predict(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"batch_size": 0}, "batch_size: got 0, must be 1 or more"),
        ({"batch_size": -3}, "batch_size: got -3, must be 1 or more"),
        ({"batch_size": 2.5}, "batch_size: got 2.5, must be 1 or more"),
        ({"precision": "fp16"}, "precision: got fp16, allowed are auto, fp32, bf16"),
        ({"tile": 64}, r"tile: got 64, allowed are True, False and \(height, width\)"),
        ({"tile": (64,)}, r"tile: got \(64,\), allowed are"),
        ({"tile": ("64", 64)}, r"tile: got \('64', 64\), allowed are"),
        ({"normals": 5}, "images: got int, allowed are paths"),
        ({"tile": True, "normals": []}, "scores: got none"),
    ],
)
def test_options_that_are_none_are_one_line(model, options, line):
    with pytest.raises(UserError, match=line):
        detect.load(model, **{"normals": [normal_image(0)], **options})


def test_missing_and_damaged_files_are_named(detector, tmp_path):
    with pytest.raises(UserError, match=r"no\.png: no such file"):
        detector.predict([tmp_path / "no.png"])
    cut = Image.fromarray(normal_image(0, (200, 200)))
    cut.save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cut\.png: the image is damaged"):
        detector.predict(tmp_path / "cut.png")
    with (
        Image.open(tmp_path / "cut.png") as opened,
        pytest.raises(UserError, match="image: cannot be decoded"),
    ):
        detector.predict(opened)


def test_another_rate_moves_the_threshold_alone(model):
    stored, strict = detect.load(model), detect.load(model, false_reject_rate=0.05)
    scores = stored.calibration.scores
    assert len(scores) == NUM_HELD_OUT
    assert stored.threshold == scores[35], "ceil(40 * 0.9) = 36"
    assert strict.threshold == scores[37], "ceil(40 * 0.95) = 38"
    with pytest.warns(DataWarning, match="0.01 needs 99 held-out normal images, got 39"):
        detect.load(model, false_reject_rate=0.01)
    with pytest.raises(UserError, match="false_reject_rate: got 1"):
        detect.load(model, false_reject_rate=1)


def test_a_category_has_a_threshold_of_its_own(model, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "several"))
    saved = json.loads((folder / "calibration.json").read_text())
    own = {"nut": calibrate([5.0, 6.0], 0.4).to_json(), "bolt": calibrate([7.0], 0.5).to_json()}
    (folder / "calibration.json").write_text(json.dumps({**saved, "categories": own}))
    assert detect.load(folder, category="nut").threshold == 6
    assert detect.load(folder).threshold == saved["threshold"]
    with pytest.raises(UserError, match=r"--category: got screw, but .* has nut, bolt"):
        detect.load(folder, category="screw")
    with pytest.raises(UserError, match="has one threshold only"):
        detect.load(model, category="nut")


def test_tiles_need_normal_images(model):
    with pytest.raises(UserError, match="--tile: needs --normals"):
        detect.load(model, tile=True)
    normals = [normal_image(n, (40, 50)) for n in range(9)]
    detector = detect.load(model, tile=True, normals=normals)
    assert detector.tiling is not None
    assert detector.tiling.size == (32, 32)
    assert len(detector.calibration.scores) == 9
    assert detector.predict(normals[0]).map.shape == (40, 50)
    stacked = detect.load(model, tile=[32, 32], normals=np.stack(normals))
    assert stacked.calibration == detector.calibration


class Damaged(Brightness):
    """Gives a number that is none for white images."""

    def __init__(self, score: float):
        super().__init__()
        self.score = score

    def forward(self, images: Tensor) -> Scores:
        scores, maps = super().forward(images)
        return Scores(torch.where(scores > 0.99, self.score, scores), maps)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_no_verdict_rests_on_a_score_that_is_no_number(score, tmp_path):
    white, grey = np.full((20, 20, 3), 255, np.uint8), np.full((20, 20, 3), 9, np.uint8)
    write_png(tmp_path / "white.png", white)
    scorer = BatchScorer(detector_scorer(Damaged(score), CPU), (64, 64), 4)
    damaged = Predictor(scorer, calibrate([0.1, 0.6], 0.34), name="runs/damaged")
    assert damaged.predict(grey).verdict == "normal"
    line = r"images\[1\]: runs/damaged gives NaN or infinity .* train again"
    with pytest.raises(UserError, match=line):
        damaged.predict([grey, white])
    with pytest.raises(UserError, match=r"white\.png: runs/damaged gives NaN"):
        damaged.predict(tmp_path / "white.png")
    with pytest.raises(UserError, match=line):
        damaged.calibrated_on([grey, white])


# Batches


def test_results_do_not_depend_on_the_batch_size(model):
    images = [normal_image(n, (30 + n, 40)) for n in range(7)]
    detector = detect.load(model, batch_size=3)
    assert detector.scorer.batch_size == 3
    reference = [detector.predict(image) for image in images]
    for batch_size in (1, 3, 100):
        detector.scorer.batch_size = batch_size
        results = detector.predict(images)
        for result, other in zip(results, reference, strict=True):
            assert result.score == pytest.approx(other.score, rel=1e-5)
            np.testing.assert_allclose(result.map, other.map, atol=1e-6)


def test_a_batch_that_does_not_fit_is_halved_and_nothing_lost():
    images = [np.full((20, 20, 3), n, np.uint8) for n in range(21)]
    predictor = by_brightness(batch_size=16, most=3)
    scores = [prediction.score for prediction in predictor.predict(images)]
    assert scores == pytest.approx([n / 255 for n in range(21)], abs=1e-6)
    assert predictor.scorer.batch_size == 2
    with pytest.raises(UserError, match="not even one image fits"):
        by_brightness(most=0).predict(images)


@pytest.mark.gpu
def test_batch_size_is_what_the_memory_of_a_gpu_holds():
    device = torch.device("cuda")
    free = torch.cuda.mem_get_info(device)[0]

    def hungry(images):
        """Takes a hundredth of the free memory per image."""
        torch.ones(len(images) * (free // 100), dtype=torch.uint8, device=device)
        return batches.Scored(np.zeros(len(images)), np.zeros((len(images), 8, 8), np.float32))

    assert measured_batch_size(hungry, (8, 8), device) in (32, 64)


def test_chunks_are_limited_in_number_and_in_pixels(monkeypatch):
    monkeypatch.setattr(batches, "CHUNK_PIXELS", 1000)
    images = [np.zeros((side, 10, 3), np.uint8) for side in (10, 20, 30, 50, 200, 10, 10, 10, 10)]
    sides = [
        [image.shape[0] for image in chunk] for chunk in chunks(images, 3, lambda i: i.size // 3)
    ]
    assert sides == [[10, 20, 30], [50], [200], [10, 10, 10], [10]]


def test_a_stream_reads_no_further_than_a_batch():
    opened: list[int] = []

    def images():
        for n in range(100):
            opened.append(n)
            yield np.full((16, 16, 3), n, np.uint8)

    stream = by_brightness(batch_size=4).stream(images())
    next(stream)
    assert len(opened) <= 5


# Masks


class OwnScore(Brightness):
    """Scores by the contrast of the image, in other units than those of its map."""

    pooled = False

    def forward(self, images: Tensor) -> Scores:
        return Scores(100 * images.std((1, 2, 3)), super().forward(images).maps)


@pytest.mark.parametrize("size", [None, (64, 64)])
def test_a_score_of_the_methods_own_decides_and_its_mask_follows(size):
    normals = [normal_image(n, (90, 110)) for n in range(6)]
    tiling = Tiling(size=size) if size else None
    score = detector_scorer(OwnScore(), CPU)
    bare = Predictor(BatchScorer(score, (64, 64), 4), calibrate([0.0], 0.2), tiling, pooled=False)
    predictor = bare.calibrated_on(normals)
    predictions = predictor.predict([*normals, *(255 - image for image in normals[:2])])
    predictions += predictor.predict([normal_image(9, (90, 110)) // 3, checkerboard((90, 110))])
    for prediction in predictions:
        assert prediction.is_anomalous == (prediction.score > predictor.threshold)
        assert prediction.mask.any() == prediction.is_anomalous
    assert predictions[-1].is_anomalous
    assert not predictions[-2].is_anomalous
    assert max(p.score for p in predictions[:6]) == predictor.calibration.scores[-1]
    if size is None:  # the same image at once: its own score, and the pooled map beside it
        peaks = sorted(
            float(image_scores(to_unit_batch(image).mean(dim=1), 4)) for image in normals
        )
        np.testing.assert_allclose(predictor.calibration.peaks, peaks, rtol=1e-5)
    again = Calibration.from_json(json.loads(json.dumps(predictor.calibration.to_json())))
    assert again == predictor.calibration


def checkerboard(shape):
    y, x = np.indices(shape)
    return np.repeat(((y + x) % 2 * 255)[..., None], 3, axis=2).astype(np.uint8)


def to_unit_batch(image):
    return torch.from_numpy(resize(image, (64, 64))).permute(2, 0, 1)[None].float() / 255


def test_mask_is_where_the_windows_that_reject_lie():
    image = np.zeros((64, 64, 3), np.uint8)
    image[10:30, 20:40] = 255  # a window of 4 x 4 px fits
    image[50:52, 50:52] = 255  # brighter than the threshold, but too small to reject anything
    result = by_brightness(0.6).predict(image)
    assert result.is_anomalous
    expected = np.zeros((64, 64), bool)
    expected[10:30, 20:40] = True
    np.testing.assert_array_equal(result.mask, expected)


@pytest.mark.parametrize("size", [(64, 64), (9, 11), (32, 200), (101, 150), (500, 8)])
def test_mask_is_empty_if_and_only_if_the_image_is_accepted(size):
    """At every size, for scores all around the threshold, single bright pixels among them."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(3)]
    spot = np.zeros((*size, 3), np.uint8)
    spot[size[0] // 2, size[1] // 2] = 255
    predictor = by_brightness(0.6)
    for image in [*images, spot]:
        score = predictor.predict(image).score
        for threshold in (score - 1e-6, score, score + 1e-6, score / 2):
            calibration = calibrate([0.0, threshold], 0.34)
            result = predictor.with_calibration(calibration).predict(image)
            assert result.mask.any() == result.is_anomalous == (score > threshold)


# Regions to ignore


def two_spots() -> np.ndarray:
    image = np.full((64, 64, 3), 20, np.uint8)
    image[4:20, 4:20] = 255
    image[40:50, 40:50] = 230
    return image


def test_what_lies_in_an_ignored_region_counts_for_nothing(tmp_path):
    image, region = two_spots(), np.zeros((64, 64), bool)
    region[:24, :24] = True
    plain = by_brightness(0.6)
    blind = plain.ignoring(region)
    result = blind.predict(image)
    cut = np.where(region[..., None], np.uint8(20), image)  # as if the region were dark
    expected = plain.predict(cut)
    assert result.score == expected.score
    np.testing.assert_array_equal(result.mask, expected.mask)
    assert result.mask[40:50, 40:50].all()
    assert plain.predict(image).mask[4:20, 4:20].all()
    write_png(tmp_path / "region.png", region)
    again = plain.ignoring(tmp_path / "region.png").predict(image)
    np.testing.assert_array_equal(again.map, result.map)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("size", [None, (48, 48)])
def test_the_threshold_of_whole_images_keeps_its_promise_where_a_region_is_ignored(pooled, size):
    """No pool grows, and a mask is empty if and only if the verdict is normal."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (96, 80, 3), dtype=np.uint8) for _ in range(6)]
    tiling = Tiling(size=size) if size else None
    score = detector_scorer(Brightness() if pooled else OwnScore(), CPU)
    bare = Predictor(BatchScorer(score, (64, 64), 4), calibrate([0.0], 0.5), tiling, pooled=pooled)
    plain = bare.calibrated_on(images)
    for corner in (8, 40, 80):
        region = np.zeros((96, 80), bool)
        region[:corner, :corner] = True
        region[-1, -1] = not region[-1, -1]
        blind = plain.ignoring(region)
        whole = plain.calibration.map_scores
        inner = blind.calibrated_on(images).calibration
        assert blind.calibration.scores == whole
        assert all(a <= b for a, b in zip(inner.scores, whole, strict=True))
        for threshold in (*inner.scores, 0.0):
            for image in images:
                result = blind.with_calibration(calibrate([threshold], 0.5)).predict(image)
                assert result.mask.any() == result.is_anomalous == (result.score > threshold)
                assert not (result.mask & region).any()


@pytest.mark.parametrize(
    ("region", "line"),
    [
        (np.ones((64, 64), bool), "covers the whole image"),
        (np.zeros((64, 64)), "allowed are a mask image's path and bool"),
        (np.zeros((64, 64, 3), bool), "allowed are a mask image's path and bool"),
        ("missing.png", "missing.png"),
    ],
)
def test_regions_that_are_none(region, line):
    with pytest.raises(UserError, match=line):
        by_brightness().ignoring(region)


def test_a_region_of_other_proportions_is_refused():
    blind = by_brightness().ignoring(np.eye(32, dtype=bool))
    assert len(blind.predict([two_spots(), np.zeros((128, 128, 3), np.uint8)])) == 2
    line = r"images\[0\]: the image is 96x64 px, the region to ignore 32x32 px"
    with pytest.raises(UserError, match=line):
        blind.predict(np.zeros((64, 96, 3), np.uint8))


def test_mask_of_a_score_that_rounding_brought_above_the_threshold():
    anomaly_map = np.full((16, 16), 0.5, np.float32)
    assert anomaly_mask(anomaly_map, anomaly_map, 0.5, 4).all()

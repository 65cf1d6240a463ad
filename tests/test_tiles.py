"""Maps of tiles joined into one, against the map of the whole image."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from products import normal_image
from torch import Tensor

from detect.calibration import calibrate
from detect.detector import Detector, Scores
from detect.pooling import image_scores, pooling_window
from detect.prediction.batches import BatchScorer
from detect.prediction.predictor import Predictor
from detect.prediction.tiles import Tiling, axis_starts, tile_weights, tiled_map
from detect.scoring import detector_scorer
from synth.base.errors import UserError

CPU = torch.device("cpu")
SIZES = [(32, 32), (33, 90), (100, 75), (64, 200), (20, 50), (9, 8)]


class Texture(Detector):
    """Translation equivariant: a fixed filter over 2 `reach` + 1 pixels, zeros beyond the image."""

    def __init__(self, reach: int):
        super().__init__()
        side = 2 * reach + 1
        g = torch.Generator().manual_seed(0)
        self.reach, self.kernel = reach, torch.randn(1, 3, side, side, generator=g) / side
        self.calls: list[int] = []

    def forward(self, images: Tensor) -> Scores:
        self.calls.append(len(images))
        maps = F.conv2d(images, self.kernel, padding=self.reach)[:, 0]
        return Scores(image_scores(maps), maps)


def colourful(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def predictor(detector: Detector, size=(32, 32), tiling: Tiling | None = None) -> Predictor:
    scorer = BatchScorer(detector_scorer(detector, CPU), size, batch_size=5)
    return Predictor(scorer, calibrate([0.1, 0.2], 0.4), tiling)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_cover_every_pixel_with_weights_that_add_up_to_one(size):
    for length, overlap in [(max(32, size[0]), 0.25), (max(32, size[1]), 0.5), (200, 0.1)]:
        total = np.zeros(length)
        for start, weight in tile_weights(length, 32, overlap):
            assert 0 <= start <= length - 32
            total[start : start + 32] += weight
        np.testing.assert_allclose(total, 1, atol=1e-6)


def test_as_few_tiles_as_the_overlap_allows():
    assert axis_starts(32, 32, 8) == [0]
    assert axis_starts(33, 32, 8) == [0, 1]
    assert axis_starts(56, 32, 8) == [0, 24]
    assert axis_starts(57, 32, 8) == [0, 12, 25]
    for length in range(32, 300):
        starts = axis_starts(length, 32, 8)
        assert starts[-1] == length - 32
        assert max(np.diff(starts), default=0) <= 24


@pytest.mark.parametrize("size", SIZES[:4])
@pytest.mark.parametrize("reach", [0, 2])
def test_map_of_an_equivariant_detector_equals_the_untiled_one_everywhere(size, reach):
    """Reach 2 is the quarter of the overlap of 8 px in which a tile does not count."""
    image, detector = colourful(size), Texture(reach)
    tiled = predictor(detector, tiling=Tiling(size=(32, 32), overlap=0.25)).predict(image)
    untiled = predictor(detector, size).predict(image)
    assert tiled.map.std() > 0.1
    np.testing.assert_allclose(tiled.map, untiled.map, atol=1e-5)
    assert max(detector.calls) <= 5, "tiles are scored in batches"


def test_beyond_the_margin_only_the_tiles_borders_differ():
    """A filter that reaches further than the margin is still exact away from the borders."""
    image, detector = colourful((100, 100)), Texture(4)
    tiled = predictor(detector, (40, 40), Tiling(size=(40, 40))).predict(image).map
    whole = predictor(detector, (100, 100)).predict(image).map
    off = np.abs(tiled - whole) > 1e-5
    assert axis_starts(100, 40, 10) == [0, 30, 60]
    shared = np.zeros(100, bool)
    shared[30:40] = shared[60:70] = True
    assert off.any()
    assert not off[np.ix_(~shared, ~shared)].any()


def test_tiles_of_another_size_are_brought_to_the_detectors():
    """A pointwise detector on constant colour sees the same at any scale."""
    image = np.full((90, 120, 3), 200, np.uint8)
    detector = Texture(0)
    tiling = Tiling(size=(64, 64))
    whole = predictor(detector, (32, 32)).predict(image)
    tiled = predictor(detector, (32, 32), tiling).predict(image)
    np.testing.assert_allclose(tiled.map, whole.map, rtol=1e-5)
    assert tiled.score == pytest.approx(whole.score, rel=1e-5)


def test_image_score_pools_the_joined_map_over_a_tiles_window():
    detector = Texture(0)
    tiled = predictor(detector, (64, 64), Tiling(size=(64, 64))).predict(colourful((200, 150)))
    assert pooling_window(64, 64) == 4
    expected = image_scores(torch.from_numpy(tiled.map)[None], 4)
    assert tiled.score == pytest.approx(float(expected), rel=1e-6)
    small = predictor(detector, (256, 256), Tiling(size=(256, 256))).predict(colourful((9, 12)))
    assert small.map.shape == (9, 12), "smaller than the window of 16 px"
    assert np.isfinite(small.score)


def test_threshold_of_tiles_comes_from_normal_images_in_tiles():
    detector = Texture(2)
    plain = predictor(detector, tiling=Tiling(size=(32, 32)))
    normals = [normal_image(n, (70, 80)) for n in range(12)]
    calibrated = plain.calibrated_on(normals)
    scores = sorted(plain.predict(image).score for image in normals)
    assert list(calibrated.calibration.scores) == pytest.approx(scores)
    assert calibrated.calibration.false_reject_rate == 0.4
    assert calibrated.threshold == calibrated.calibration.scores[7], "ceil(13 * 0.6) = 8"
    assert sum(calibrated.predict(image).is_anomalous for image in normals) == 4


def test_a_constant_map_stays_constant():
    for size in SIZES:
        image = colourful(size)
        joined = tiled_map(image, Tiling(size=(32, 24)), lambda tiles: (
            np.full((32, 24), 0.7, np.float32) for _ in tiles
        ))  # fmt: skip
        assert joined.shape == size
        np.testing.assert_allclose(joined, 0.7, rtol=1e-6)


def test_no_step_at_the_borders_of_tiles():
    """Where each tile is off by an amount of its own, the joined map goes from one to the other."""
    rng = np.random.default_rng(1)
    image = colourful((200, 200))
    tiling = Tiling(size=(64, 64), overlap=0.25)
    joined = tiled_map(
        image, tiling, lambda tiles: (np.full((64, 64), rng.random(), np.float32) for _ in tiles)
    )
    steps = max(np.abs(np.diff(joined, axis=axis)).max() for axis in (0, 1))
    assert np.ptp(joined) > 0.5
    assert steps < np.pi / 16 * 1.1, "a cosine over 8 of the 16 shared pixels"


@pytest.mark.parametrize(
    ("size", "overlap", "line"),
    [((4, 32), 0.25, "tile size: got 4 32"), ((32, 32), 0.6, "overlap: got 0.6")],
)
def test_impossible_tiles(size, overlap, line):
    with pytest.raises(UserError, match=line):
        Tiling(size=size, overlap=overlap)

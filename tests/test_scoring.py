import errno
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from products import SIZE, normal_image, write_product
from torch import Tensor

from detect.detector import Detector, Scores
from detect.pooling import image_scores
from detect.scoring import (
    ParkedMaps,
    Scored,
    detector_scorer,
    mean_image,
    mean_image_scorer,
    score_batches,
)
from detect.scratch import Scratch
from synth.base.errors import UserError
from synth.images import write_png


class Brightness(Detector):
    """Scores by brightness; counts the images of each call."""

    def __init__(self):
        super().__init__()
        self.calls: list[int] = []

    def forward(self, images: Tensor) -> Scores:
        self.calls.append(len(images))
        maps = images.mean(dim=1)
        return Scores(maps.amax((1, 2)), maps)


def joined(batches):
    scores, maps = zip(*batches, strict=True)
    return Scored(np.concatenate(scores), np.concatenate(maps))


def test_files_are_scored_in_order_as_the_detector_sees_them(tmp_path):
    paths = sorted((write_product(tmp_path) / "train/good").iterdir())
    detector, told = Brightness(), []
    scorer = detector_scorer(detector, torch.device("cpu"))
    batches = score_batches(
        scorer,
        paths,
        SIZE,
        batch_size=4,
        progress=lambda done, total: told.append((done, total)),
    )
    scored = joined(batches)
    expected = np.stack([normal_image(n).mean(axis=2) / 255 for n in range(10)])
    np.testing.assert_allclose(scored.maps, expected, atol=1e-6)
    np.testing.assert_allclose(scored.scores, expected.max((1, 2)), atol=1e-6)
    assert scored.scores.dtype == scored.maps.dtype == np.float32
    assert detector.calls == [4, 4, 2]
    assert told == [(4, 10), (8, 10), (10, 10)]
    pooled = image_scores(torch.from_numpy(scored.maps))
    np.testing.assert_array_equal(scored.peaks, pooled)


def test_images_of_any_size_are_brought_to_the_detectors(tmp_path):
    write_png(tmp_path / "large.png", normal_image(0, (70, 50)))
    write_png(tmp_path / "small.png", normal_image(0, (9, 12)))
    paths = [tmp_path / "large.png", tmp_path / "small.png"]
    scorer = detector_scorer(Brightness(), torch.device("cpu"))
    scored = joined(score_batches(scorer, paths, (16, 24)))
    assert scored.maps.shape == (2, 16, 24)


def test_unreadable_file_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bad\.png"):
        joined(
            score_batches(
                mean_image_scorer(normal_image(0) / np.float32(255)), [tmp_path / "bad.png"], SIZE
            )
        )


def test_baseline_is_the_squared_distance_to_the_mean_image(tmp_path):
    paths = [tmp_path / f"{level}.png" for level in (100, 110)]
    for path in paths:
        write_png(path, np.full((*SIZE, 3), int(path.stem), np.uint8))
    mean = mean_image(paths, SIZE)
    np.testing.assert_allclose(mean, 105 / 255, rtol=1e-6)
    image = np.full((1, *SIZE, 3), 105, np.uint8)
    image[0, 4:6, 4:6] = (156, 105, 105)
    scored: Scored = mean_image_scorer(mean)(image)
    expected = np.zeros(SIZE)
    expected[4:6, 4:6] = (51 / 255) ** 2 / 3
    np.testing.assert_allclose(scored.maps[0], expected, atol=1e-7)
    # the window has 2 pixels at 32 px: it fits into the square
    np.testing.assert_allclose(scored.scores, [expected.max()], atol=1e-7)


def test_parked_maps_come_back_as_they_were(tmp_path):
    paths = sorted((write_product(tmp_path) / "train/good").iterdir())
    scorer = detector_scorer(Brightness(), torch.device("cpu"))
    expected = joined(score_batches(scorer, paths, SIZE))
    with Scratch(tmp_path) as scratch:
        maps = ParkedMaps(scratch)
        parts = list(maps.park(score_batches(scorer, paths, SIZE, batch_size=3)))
        assert [len(part.scores) for part in parts] == [3, 3, 3, 1]
        assert len(maps) == 10
        assert maps.highest == expected.maps.max()
        for number in (7, 0, 9):
            np.testing.assert_array_equal(maps[number], expected.maps[number])


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    with Scratch(tmp_path) as scratch:

        def full(_: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(scratch, "_file", SimpleNamespace(
            seek=lambda *_: 0, write=full, close=scratch._file.close
        ))  # fmt: skip
        with pytest.raises(UserError, match="the disk is full"):
            scratch.append(np.zeros(3))

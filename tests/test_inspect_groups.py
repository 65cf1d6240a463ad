"""What `synth inspect` measures, on points in the plane in place of features."""

import base64
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from synth.base.backbones import DEFAULT_BACKBONE, build_backbone
from synth.images import read_image
from synth.quality.groups import Examined, closest, mean_pairwise, measure, measure_by_strength
from synth.quality.kid import Measured, kid
from synth.quality.page import Picture, with_error, write_page
from synth.quality.plot import write_distance_plot
from synth.quality.reference import Reference

TRAINING = np.array([[0, 0], [0, 2], [2, 0], [2, 2], [4, 4]], np.float32)
HELD = np.full(20, 0.5, np.float32)


@pytest.fixture(scope="module")
def reference() -> Reference:
    """Held-out images lie at 0.5, so that a copy is nearer than 0.25: a quality of 0.5."""
    mean, std = np.full(2, 1, np.float32), np.full(2, 2, np.float32)
    return Reference(build_backbone(DEFAULT_BACKBONE), (8, 8), TRAINING, mean, std, HELD)


def at(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, np.float32)


NORMAL = np.full(3, 2, np.float32)
"""Pixel noise of held-out images."""


def examined(strengths: list[float], qualities: list[float] | None = None) -> Examined:
    num = len(strengths)
    features = np.stack([np.arange(num), np.zeros(num)], axis=1).astype(np.float32)
    quality = np.array(qualities or [1.0] * num, np.float32)
    return Examined(
        "folder",
        lambda n: np.full((8, 8, 3), n, np.uint8),
        np.array(strengths, np.float64),
        features,
        quality,
        np.zeros(num, np.int64),
        np.arange(num, dtype=np.float32),
    )


def test_a_group_by_hand(reference: Reference) -> None:
    group = measure(reference, "some", 0.1, at((0, 0.1), (0, 1), (2, 3), (5, 4)), 1.0)
    assert group.quality.value == pytest.approx(np.mean([0.2, 2, 2, 2]))
    assert group.quality.error == pytest.approx(np.std([0.2, 2, 2, 2], ddof=1) / 2)
    assert (group.share_far, group.share_copies) == (0.75, 0.25)
    assert (group.num_images, group.strength) == (4, 0.1)
    some, normal = at((0, 0.1), (0, 1), (2, 3), (5, 4)) * 2 + 1, TRAINING * 2 + 1
    rms = np.float32(np.sqrt((4 * 1 + 4 * 25 + 2 * 81) / 10))
    assert group.kid == kid(some / rms, normal / rms)  # as before they were standardised
    assert group.kid is not None
    assert json.loads(json.dumps(group.to_json()))["kid"]["value"] == group.kid.value


def test_diversity_is_the_mean_distance_over_that_of_training_images(reference: Reference) -> None:
    points = at((0, 0), (0, 3), (4, 0))
    normal = np.mean([np.linalg.norm(a - b) for a, b in itertools.combinations(TRAINING, 2)])
    assert measure(reference, "some", None, points, 1.0).diversity == pytest.approx(
        4 / normal, rel=1e-5
    )
    assert measure(reference, "same", None, at(*[(1, 1)] * 5), 1.0).diversity == 0


def test_kid_does_not_depend_on_the_scale_of_the_networks_features(reference: Reference) -> None:
    louder = reference._replace(mean=1000 * reference.mean, std=1000 * reference.std)
    points = at((0, 0.1), (0, 1), (2, 3), (5, 4))
    quiet, loud = (measure(each, "", None, points, 1.0).kid for each in (reference, louder))
    assert quiet is not None
    assert loud == pytest.approx(quiet, rel=1e-4)


def test_one_image_has_no_spread(reference: Reference) -> None:
    group = measure(reference, "one", None, at((0, 1)), 1.0)
    assert (group.kid, group.diversity, group.quality.error) == (None, None, None)
    assert mean_pairwise(at((0, 1))) is None


def test_few_strengths_are_groups_of_their_own(reference: Reference) -> None:
    found = measure_by_strength(reference, examined(2 * [0.5, 0.1, 0.5, 0.2, 0.1, 0.5]), NORMAL)
    assert [(g.strength, g.num_images) for g in found] == [(0.1, 4), (0.2, 2), (0.5, 6)]


def test_few_images_of_a_range_are_one_group(reference: Reference) -> None:
    found = measure_by_strength(reference, examined([0.11, 0.17, 0.125, 0.19]), NORMAL)
    assert [(g.strength, g.num_images) for g in found] == [(pytest.approx(0.14875), 4)]


def test_many_strengths_are_bins_of_equally_many_images(reference: Reference) -> None:
    strengths = np.random.default_rng(0).uniform(0.1, 0.2, 75)
    found = measure_by_strength(reference, examined(strengths.tolist()), NORMAL)
    assert [group.num_images for group in found] == [25, 25, 25]
    expected = np.sort(strengths).reshape(3, 25).mean(axis=1)
    assert [group.strength for group in found] == pytest.approx(expected, abs=1e-6)
    assert len(measure_by_strength(reference, examined(list(range(9))), NORMAL)) == 1


def test_images_without_a_strength_are_in_no_group(reference: Reference) -> None:
    assert measure_by_strength(reference, examined([np.nan, np.nan]), NORMAL) == []
    found = measure_by_strength(reference, examined([np.nan, 0.1, 0.1]), NORMAL)
    assert found[0].grain == 1.5 / 2  # the noise of images 1 and 2 over the normal ones'
    assert [group.num_images for group in found] == [2]


def test_the_closest_of_all_parts() -> None:
    first = examined([0, 0], [0.5, 0.1])
    second = examined([0.2, 0.2, 0.2], [0.3, 0.7, 0.4])
    found = closest([first, second], 3)
    assert [(part is first, n) for part, n in found] == [(True, 1), (False, 0), (False, 2)]


def test_the_curve_is_a_picture_whatever_is_known(reference: Reference, tmp_path: Path) -> None:
    images = examined([0.1] * 5 + [0.2] * 5)
    floor = measure(reference, "floor", None, at((0, 1), (1, 0)), 1.0)  # too few for KID
    samples = measure_by_strength(reference, examined([0.0] * 4 + [0.5] * 4), NORMAL)
    folder = measure_by_strength(reference, images, NORMAL)
    heights = []
    for lines in ((samples, [], None), ([], folder, images), (samples, folder, images)):
        write_distance_plot(tmp_path / "curve.png", floor, *lines)
        heights.append(read_image(tmp_path / "curve.png").shape[0])
    assert heights[0] < heights[1] == heights[2]  # with a histogram of strengths


def test_figures_with_their_errors_in_text() -> None:
    assert with_error(Measured(1.234, 0.056), 2) == "1.23 ± 0.06"
    assert with_error(Measured(1.5, None), 2) == "1.50"
    assert with_error(None, 2) == "too few"


def test_names_on_the_page_are_text(reference: Reference, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")
    group = measure(reference, "<b>", 0.1, at((0, 1)), 1.0)
    shown = [Picture("<script>", "<i>", picture)]
    write_page(tmp_path / "page.html", "a & b", ["1 < 2"], [group], ["<u>"], shown)
    page = (tmp_path / "page.html").read_text()
    for text in ("<b>", "<script>", "<i>", "<u>", "a & b"):
        assert text not in page
    assert "a &amp; b" in page
    assert base64.b64encode(picture.read_bytes()).decode() in page

"""`detect drift`: a test that alarms as rarely as it says, and notices a change."""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from commands import Command
from detectors import NUM_HELD_OUT, write_detector
from products import normal_image

from detect.calibration import calibrate
from detect.prediction.drift import fewest_images, measure_drift
from detect.prediction.drift_plot import write_drift_plot
from synth.base.errors import UserError
from synth.images import read_image, write_png


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector"))


def brute_force(held, recent) -> tuple[float, float]:
    """D, and the share of all ways to divide the pooled scores that have such a D or more."""

    def distance(one, other):
        return max(abs(np.mean(one <= x) - np.mean(other <= x)) for x in pooled)

    pooled = np.array([*held, *recent])
    D = distance(np.array(held), np.array(recent))
    places = set(range(len(pooled)))
    divided = [
        distance(pooled[list(chosen)], pooled[list(places - set(chosen))])
        for chosen in combinations(range(len(pooled)), len(held))
    ]
    return D, float(np.mean(np.array(divided) >= D - 1e-12))


# The test


def test_p_value_counts_all_ways_to_divide_the_scores():
    rng = np.random.default_rng(0)
    for n, m, shift in [(4, 5, 0), (6, 3, 1), (5, 5, 2)]:
        held, recent = rng.normal(size=n), rng.normal(shift, size=m)
        found = measure_drift(calibrate(held, 0.2), recent.tolist(), 0.05)
        assert (found.distance, found.p_value) == pytest.approx(brute_force(held, recent))


def test_p_value_is_no_smaller_than_the_truth_with_ties():
    rng = np.random.default_rng(1)
    for _ in range(5):
        held, recent = rng.integers(0, 3, 5), rng.integers(0, 3, 5)
        found = measure_drift(calibrate(held, 0.2), recent.tolist(), 0.05)
        D, p_value = brute_force(held, recent)
        assert found.distance == pytest.approx(D)
        assert found.p_value >= p_value - 1e-9


@pytest.mark.parametrize("discrete", [False, True])
def test_without_drift_alarms_are_as_rare_as_the_level(discrete):
    """Over many draws of held-out and recent images from one distribution."""
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(600):
        scores = rng.geometric(0.4, size=60) if discrete else rng.lognormal(size=60)
        found = measure_drift(calibrate(scores[:20], 0.1), scores[20:].tolist(), 0.05)
        alarms += found.is_drift
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
    assert alarms / 600 <= limit
    assert discrete or alarms > 0


@pytest.mark.parametrize(("factor", "is_higher"), [(1.6, True), (0.6, False)])
def test_a_change_in_either_direction_is_noticed(factor, is_higher):
    rng = np.random.default_rng(3)
    found = measure_drift(
        calibrate(rng.gamma(9, size=60), 0.05), (factor * rng.gamma(9, size=60)).tolist(), 0.01
    )
    assert found.is_drift
    assert found.is_higher == is_higher
    assert ("higher" if is_higher else "lower") in found.finding
    assert found.distance > found.noticeable


def test_a_few_defects_are_no_drift():
    rng = np.random.default_rng(4)
    recent = rng.normal(size=200)
    recent[:4] = 99
    found = measure_drift(calibrate(rng.normal(size=100), 0.05), recent.tolist(), 0.01)
    assert not found.is_drift
    assert found.num_rejected >= 4


@pytest.mark.parametrize(("num_held_out", "level"), [(39, 0.01), (4, 0.01), (2, 0.05), (1, 0.2)])
def test_too_few_images_to_ever_alarm(num_held_out, level):
    held = calibrate(range(num_held_out), 0.4)
    needed = fewest_images(num_held_out, level)
    for count in (needed - 1, needed):
        if count:
            found = measure_drift(held, [1e6] * count, level)
            assert found.distance == 1
            assert found.is_drift == (count == needed)
            assert (found.noticeable is None) == (count < needed)
            assert ("can never reach" in found.power) == (count < needed)


def test_the_smallest_noticeable_distance_is_about_where_alarms_begin():
    held = calibrate(range(50), 0.1)
    alarms = {}
    for shift in range(50):
        found = measure_drift(held, [score + shift + 0.5 for score in range(50)], 0.01)
        alarms[found.distance] = found.is_drift
    first = min(distance for distance, alarm in alarms.items() if alarm)
    assert found.noticeable == pytest.approx(first, abs=0.03)


def test_rejects_and_their_chance():
    found = measure_drift(calibrate(range(19), 0.05), [100.0, 1.5, 2.5], 0.01)
    assert found.num_rejected == 1
    assert found.chance == pytest.approx(1 - 19 / 22), "not all three below the largest of 19"
    told = json.loads(json.dumps(found.to_json()))
    assert told["rejects"]["share_of_recent"] == pytest.approx(1 / 3)
    assert told["num_images"] == {"recent": 3, "held_out": 19}


def test_scores_that_are_none():
    held = calibrate([1.0, 2.0], 0.4)
    with pytest.raises(UserError, match="none given"):
        measure_drift(held, [], 0.01)
    with pytest.raises(UserError, match="NaN"):
        measure_drift(held, [1.0, math.nan], 0.01)


def test_the_figure_has_both_distributions(tmp_path):
    found = measure_drift(calibrate(range(20), 0.1), list(range(10, 40)), 0.01)
    write_drift_plot(tmp_path / "drift.png", found)
    picture = read_image(tmp_path / "drift.png").reshape(-1, 3)
    for colour in ("#3b82f6", "#f97316"):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (picture == rgb).all(axis=1).sum() > 500


# The command


def test_no_drift_is_0_and_drift_is_3(run, model, tmp_path):
    for n in range(60):
        write_png(tmp_path / f"same/{n}.png", normal_image(5000 + n))
        write_png(tmp_path / f"dark/{n}.png", normal_image(5000 + n, (8, 8)) // 3)
    out = tmp_path / "out"
    ended = run("detect", "drift", tmp_path / "same", "--model", model, "--out", out)
    assert ended.code == 0, ended
    told = json.loads((out / "drift.json").read_text())
    assert told["drift"] is False
    assert told["num_images"] == {"recent": 60, "held_out": NUM_HELD_OUT}
    assert told["p_value"] > told["level"] == 0.01
    assert [Path(row["file"]).parent.name for row in told["recent"]] == ["same"] * 60
    assert "60 recent and 39 held-out images tell differences of D = " in ended.out
    assert ended.out.splitlines()[-1] == f"figure: {out / 'drift.png'}"

    ended = run("detect", "drift", tmp_path / "dark", "--model", model, "--out", out)
    assert ended.code == 3, ended
    told = json.loads((out / "drift.json").read_text())
    assert told["drift"] is True
    assert told["p_value"] <= 0.01
    assert ended.out.startswith("drift, scores are")
    assert "Traceback" not in ended.err


def test_too_few_images_are_warned_of(run, model, tmp_path):
    write_png(tmp_path / "in/a.png", normal_image(0))
    ended = run("detect", "drift", tmp_path / "in", "--model", model, "--out", tmp_path / "out")
    assert ended.code == 0
    assert "1 recent and 39 held-out images can never reach the level 0.01" in ended.err
    assert f"{fewest_images(39, 0.01)} recent images or more are needed" in ended.err


def test_mistakes_are_2(run, model, tmp_path):
    write_png(tmp_path / "in/a.png", normal_image(0))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/b.png").write_bytes(b"odd")
    (tmp_path / "v.mp4").write_bytes(b"")

    def refused(images, *options):
        words = ("detect", "drift", tmp_path / images, "--model", model, "--out", tmp_path / "out")
        return run.refused(*words, *options)

    assert "--level: got 1.0, must lie between 0 and 1" in refused("in", "--level", 1)
    assert "1 of 1 images cannot be read" in refused("bad")
    assert "got a video" in refused("v.mp4")
    assert "no such file or folder" in refused("no")


def test_the_figure_is_no_recent_image(run, model, tmp_path):
    images = tmp_path / "in"
    write_png(images / "a.png", normal_image(0))
    words = ("--model", model, "--out", images / "drift")
    assert f"drift lies in {images}" in run.refused("detect", "drift", images, *words)
    for _ in range(2):
        assert run("detect", "drift", f"{images}/**/*.png", *words).code == 0
        told = json.loads((images / "drift/drift.json").read_text())
        assert [Path(row["file"]).name for row in told["recent"]] == ["a.png"]

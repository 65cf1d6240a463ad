import json

import numpy as np
import pytest
from scipy.stats import betabinom

from detect.calibration import Calibration, calibrate
from synth.errors import UserError


@pytest.mark.parametrize(
    ("num_scores", "rate", "rank"),
    [(9, 0.1, 9), (10, 0.1, 10), (19, 0.1, 18), (19, 0.05, 19), (99, 0.29, 71), (9, 0.7, 3)],
)
def test_rank_by_hand(num_scores, rate, rank):
    """Rank = ceil((n + 1)(1 - rate)); the last two go wrong in plain floating point."""
    calibration = calibrate(range(num_scores, 0, -1), rate)
    assert calibration.threshold == rank
    assert calibration.guaranteed_rate == pytest.approx(1 - rank / (num_scores + 1))
    assert calibration.guaranteed_rate <= rate + 1e-12
    assert calibration.note == ""
    assert not calibration.rejects(rank)
    assert calibration.rejects(rank + 1e-9)


def test_too_few_normals_use_the_largest_and_say_so():
    calibration = calibrate([3.0, 1.0, 2.0], 0.05)
    assert calibration.threshold == 3.0
    assert calibration.needed == 19
    assert calibration.guaranteed_rate == 0.25
    assert "19" in calibration.note
    assert "0.25" in calibration.note
    assert "\n" not in calibration.note
    assert calibrate(range(18), 0.05).note
    assert not calibrate(range(19), 0.05).note


@pytest.mark.parametrize(("rate", "num_scores"), [(0.05, 19), (0.1, 50), (0.3, 7), (0.01, 20)])
def test_simulated_reject_rate_is_the_guaranteed_one(rate, num_scores):
    rng = np.random.default_rng(0)
    draws = rng.gamma(2.0, size=(4000, num_scores + 1))
    rejected = [calibrate(row[:-1], rate).rejects(row[-1]) for row in draws]
    expected = calibrate(range(num_scores), rate).guaranteed_rate
    error = 4 * np.sqrt(expected * (1 - expected) / len(draws))
    assert np.mean(rejected) == pytest.approx(expected, abs=error)


def test_ties_only_make_it_safer():
    rng = np.random.default_rng(1)
    draws = rng.integers(0, 4, size=(4000, 30))
    rejected = np.mean([calibrate(row[:-1], 0.1).rejects(row[-1]) for row in draws])
    assert rejected <= 0.1
    constant = calibrate([1.0] * 30, 0.5)
    assert constant.threshold == 1.0
    assert not constant.rejects(1.0)


def test_p_value_counts():
    calibration = calibrate([1.0, 2.0, 2.0, 3.0], 0.2)
    assert [calibration.p_value(score) for score in (0.0, 1.0, 2.0, 2.5, 3.0, 4.0)] == [
        1.0, 1.0, 0.8, 0.4, 0.4, 0.2,
    ]  # fmt: skip


def test_a_reject_is_a_small_p_value():
    scores = np.random.default_rng(2).normal(size=40)
    calibration = calibrate(scores, 0.1)
    for score in np.concatenate([scores, scores + 1e-6]):
        small = calibration.p_value(score) <= calibration.guaranteed_rate + 1e-12
        assert calibration.rejects(score) == small


@pytest.mark.parametrize(("num_scores", "rate"), [(19, 0.05), (60, 0.1), (5, 0.01)])
def test_chance_of_rejects_is_beta_binomial(num_scores, rate):
    calibration = calibrate(range(num_scores), rate)
    truth = betabinom(30, num_scores + 1 - calibration.rank, calibration.rank)
    for num_rejected in (0, 1, 4, 30):
        chance = calibration.chance_of_rejects(num_rejected, 30)
        assert chance == pytest.approx(truth.sf(num_rejected - 1), rel=1e-9)
    assert calibration.chance_of_rejects(1, 1) == pytest.approx(calibration.guaranteed_rate)


def test_json_round_trip():
    scores = np.random.default_rng(3).normal(size=25).astype(np.float32)
    calibration = calibrate(scores, 0.05)
    loaded = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert loaded == calibration
    assert loaded.threshold in scores


def test_damaged_json_is_refused():
    data = calibrate([1.0, 2.0], 0.5).to_json()
    with pytest.raises(UserError, match="threshold"):
        Calibration.from_json(data | {"threshold": 1.5})
    with pytest.raises(UserError, match="needs scores"):
        Calibration.from_json({"threshold": 1.5})
    with pytest.raises(UserError, match="NaN"):
        Calibration.from_json(data | {"scores": [1.0, float("nan")]})


@pytest.mark.parametrize(
    ("scores", "rate", "message"),
    [
        ([], 0.1, "got none"),
        ([1.0, float("inf")], 0.1, "infinity"),
        ([1.0], 0.0, "false_reject_rate"),
        ([1.0], 1.0, "false_reject_rate"),
        ([1.0], float("nan"), "false_reject_rate"),
    ],
)
def test_wrong_input_raises(scores, rate, message):
    with pytest.raises(UserError, match=message):
        calibrate(scores, rate)


def test_unsorted_scores_are_refused():
    with pytest.raises(UserError, match="calibrate"):
        Calibration(scores=(2.0, 1.0), false_reject_rate=0.1)

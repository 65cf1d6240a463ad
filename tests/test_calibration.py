import json

import numpy as np
import pytest
from scipy.stats import beta, betabinom, kstest, lognorm

from detect.calibration import Calibration, calibrate
from synth.base.errors import UserError


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
    for odd in ("x", None, [1.0]):
        with pytest.raises(UserError, match="needs scores"):
            Calibration.from_json(data | {"scores": [1.0, odd]})
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


# The guarantee, simulated


@pytest.mark.parametrize(("rate", "num_scores"), [(0.05, 19), (0.05, 30), (0.01, 250)])
def test_reject_rate_of_fresh_normals_follows_the_beta_law(rate, num_scores):
    """Given the held-out normals, the true rate is Beta(n + 1 - k, k) whatever the distribution."""
    rng = np.random.default_rng(10)
    draws = rng.lognormal(size=(3000, num_scores))
    chosen = [calibrate(row, 0.5).at_rate(rate) for row in draws]
    true_rates = lognorm(1).sf([calibration.threshold for calibration in chosen])
    law = beta(num_scores + 1 - chosen[0].rank, chosen[0].rank)
    assert true_rates.mean() <= rate + 4 * law.std() / np.sqrt(len(draws))
    assert true_rates.mean() == pytest.approx(law.mean(), abs=4 * law.std() / np.sqrt(len(draws)))
    assert law.mean() == pytest.approx(chosen[0].guaranteed_rate)
    assert kstest(true_rates, law.cdf).pvalue > 0.001


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_reject_rate_holds_with_heavy_ties(rate):
    rng = np.random.default_rng(11)
    shares = np.array([0.55, 0.3, 0.1, 0.05])  # of the only four scores there are
    draws = rng.choice(4, p=shares, size=(3000, 25))
    chosen = [calibrate(row, rate) for row in draws]
    rejected = [sum(shares[int(calibration.threshold) + 1 :]) for calibration in chosen]
    assert 0 < np.mean(rejected) <= rate
    p_values = np.array([[c.p_value(score) for score in range(4)] for c in chosen])
    small = np.mean((p_values <= rate) @ shares)
    assert small <= rate, "a p-value is small as rarely as it says"


def test_another_rate_keeps_the_scores():
    stored = calibrate(range(300), 0.05)
    strict = stored.at_rate(0.01)
    assert stored.at_rate(None) is stored
    assert (stored.threshold, strict.threshold) == (285, 297)
    assert strict.scores == stored.scores
    assert strict == calibrate(range(300), 0.01)
    assert "threshold 297: rejects at most 1.00% of normal images" in strict.promise
    assert "1.00% asked for; from 300 held-out" in strict.promise
    assert "needs 999 held-out normal images, got 300" in stored.at_rate(0.001).note
    with pytest.raises(UserError, match="false_reject_rate: got 2"):
        stored.at_rate(2)


def test_chance_of_rejects_among_many_thousand_images():
    calibration = calibrate(range(99), 0.05)
    truth = betabinom(20_000, 100 - calibration.rank, calibration.rank)
    assert calibration.chance_of_rejects(1500, 20_000) == pytest.approx(truth.sf(1499), rel=1e-6)

import numpy as np
import pytest

from detect.evaluation.metrics import ImageMetrics, PixelMetrics
from detect.evaluation.seeds import Training, mean_and_deviation, summarise
from synth.base.errors import UserError

PIXEL = PixelMetrics(0.9, 0.5, 0.5, 0.8, 0.6)


def trainings(*values, pixel=PIXEL):
    return [
        Training(f"seed{n}", n, ImageMetrics(value, 0.5, 0.5), pixel)
        for n, value in enumerate(values)
    ]


def test_spread_is_numpys_sample_deviation():
    values = [0.91, 0.95, 0.87, 0.99]
    assert mean_and_deviation(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert mean_and_deviation([0.9]) == (0.9, None)
    with pytest.raises(UserError, match="got 1; a spread needs two"):
        summarise(trainings(0.9), [{}])


def test_trainings_are_averaged_and_their_differences_named():
    configs = [{"detector": {"seed": n, "width": 8}, "data": {"digest": "a"}} for n in range(3)]
    seeds = summarise(trainings(0.8, 0.9, 1.0), configs)
    assert seeds.image["auroc"] == pytest.approx((0.9, 0.1))
    assert seeds.pixel["aupro_005"] == (0.6, 0.0)
    assert seeds.differing == ("detector.seed",)
    assert seeds.caution == ""


def test_more_than_seeds_or_nothing_is_told():
    same = [{"detector": {"seed": 0}, "num_steps": 5}] * 2
    assert "their spread means nothing" in summarise(trainings(0.8, 0.9), same).caution
    other = [same[0], {"detector": {"seed": 1}, "num_steps": 9}]
    assert "more than their seeds (num_steps)" in summarise(trainings(0.8, 0.9), other).caution


def test_pixels_are_averaged_only_where_all_have_them():
    rows = [*trainings(0.8), *trainings(0.9, pixel=None)]
    assert summarise(rows, [{}, {"seed": 1}]).pixel == {}

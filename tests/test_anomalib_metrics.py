"""Our metrics against anomalib's where the definitions agree: AUROC, F1-max, AUPRO.

Its AUPR is not among them: it joins the points of the precision-recall curve by straight lines,
which average precision does not. anomalib is not one of our dependencies; CONTRIBUTING.md tells
how to make its environment.
"""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_metrics import random_maps

from detect.evaluation.metrics import pixel_metrics

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("anomalib") is None,
        reason="anomalib is not installed; see CONTRIBUTING.md for its environment",
    ),
    pytest.mark.filterwarnings("ignore"),  # of anomalib and lightning, which are not ours
]


def square_maps(levels):
    """Maps of one size, as anomalib wants them: bool and float32 [N, 16, 16]."""
    masks, maps = [], []
    for seed in range(12):
        mask, scores = (part[1] for part in random_maps(np.random.default_rng(seed), 2))
        masks.append(np.zeros((16, 16), bool))
        masks[-1][: mask.shape[0], : mask.shape[1]] = mask & (seed % 3 > 0)
        maps.append(np.random.default_rng(seed).random((16, 16)) * 0.3)
        maps[-1][: mask.shape[0], : mask.shape[1]] += scores
    scores = np.stack(maps)
    if levels:
        scores = np.round(scores * levels) / levels
    return np.stack(masks), scores.astype(np.float32)


@pytest.mark.parametrize("levels", [None, 20])
def test_pixel_metrics_equal_anomalibs(levels):
    from anomalib.metrics import AUPRO, AUROC, F1Max

    masks, maps = square_maps(levels)
    maps = (maps - maps.min()) / np.ptp(maps)  # anomalib wants [0, 1]
    ours = pixel_metrics(list(masks), list(maps))
    batch = SimpleNamespace(scores=torch.from_numpy(maps), labels=torch.from_numpy(masks).int())

    def theirs(metric):
        metric.update(batch)
        return float(metric.compute())

    fields = ["scores", "labels"]
    assert ours.auroc == pytest.approx(theirs(AUROC(fields=fields)), abs=1e-5)
    assert ours.f1_max == pytest.approx(theirs(F1Max(fields=fields)), abs=1e-5)
    for limit, value in ((0.3, ours.aupro), (0.05, ours.aupro_005)):
        assert value == pytest.approx(theirs(AUPRO(fields=fields, fpr_limit=limit)), abs=1e-4)

import csv
import json

import numpy as np
import pytest
from products import SIZE, write_product
from sklearn.metrics import average_precision_score, roc_auc_score

from detect.calibration import calibrate
from detect.evaluation import comparison, evaluate, native_map, open_test_set
from detect.results import make_report, write_results
from detect.scoring import Scored
from synth.catalog import open_category
from synth.errors import UserError
from synth.images import write_png
from synth.progress import no_bars


@pytest.fixture
def test_set(tmp_path):
    return open_test_set(open_category("mvtec", write_product(tmp_path / "widget")), no_bars)


def known_scores(test_set, size=SIZE):
    rng = np.random.default_rng(0)
    labels = np.array([record.is_anomalous for record in test_set.records])
    maps = rng.random((len(labels), *size), dtype=np.float32)
    for n in np.flatnonzero(labels):
        maps[n, : size[0] // 2] += 0.3
    return labels, Scored(rng.random(len(labels), dtype=np.float32) + 0.4 * labels, maps)


def test_figures_are_those_of_scikit_learn(test_set):
    labels, scored = known_scores(test_set)
    found = evaluate(test_set, scored)
    assert found.image.auroc == pytest.approx(roc_auc_score(labels, scored.scores))
    expected = average_precision_score(labels, scored.scores)
    assert found.image.average_precision == pytest.approx(expected)
    pixels = np.stack(test_set.masks).ravel()
    assert pixels.sum() == 4 * 64  # four squares of 8 by 8
    assert found.pixel is not None
    assert found.pixel.auroc == pytest.approx(roc_auc_score(pixels, scored.maps.ravel()))
    expected = average_precision_score(pixels, scored.maps.ravel())
    assert found.pixel.average_precision == pytest.approx(expected)
    row = comparison("ours", found)
    assert row == ("ours", found.image.auroc, found.pixel.auroc, found.pixel.aupro)


def test_small_maps_are_measured_at_the_masks_resolution(test_set):
    _, scored = known_scores(test_set, size=(16, 8))
    found = evaluate(test_set, scored)
    grown = np.stack([native_map(m, SIZE) for m in scored.maps])
    assert grown.shape == (len(test_set.records), *SIZE)
    expected = roc_auc_score(np.stack(test_set.masks).ravel(), grown.ravel())
    assert found.pixel is not None
    assert found.pixel.auroc == pytest.approx(expected)


def test_without_masks_only_images_are_measured(tmp_path):
    root = write_product(tmp_path / "widget")
    for mask in (root / "ground_truth/spot").iterdir():
        mask.unlink()
    (root / "ground_truth/spot").rmdir()
    test_set = open_test_set(open_category("folder", root), no_bars)
    assert test_set.masks is None
    found = evaluate(test_set, known_scores(test_set)[1])
    assert (found.pixel, found.pro) == (None, None)
    assert found.image.auroc > 0.5


def test_mask_of_another_size_is_named(tmp_path):
    root = write_product(tmp_path / "widget")
    write_png(root / "ground_truth/spot/002_mask.png", np.ones((16, 16), np.bool_))
    with pytest.raises(UserError, match=r"002_mask\.png: the mask is 16x16"):
        open_test_set(open_category("mvtec", root), no_bars)


def test_unreadable_test_image_is_named(tmp_path):
    root = write_product(tmp_path / "widget")
    (root / "test/good/001.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"test/good/001\.png: the file is empty"):
        open_test_set(open_category("mvtec", root), no_bars)


def test_one_label_is_refused(tmp_path):
    root = write_product(tmp_path / "widget", num_test=1)
    (root / "test/good/000.png").unlink()
    with pytest.raises(UserError, match="0 normal and 1 anomalous"):
        open_test_set(open_category("mvtec", root), no_bars)


def test_files_hold_what_was_measured(test_set, tmp_path):
    _, scored = known_scores(test_set)
    evaluation = evaluate(test_set, scored)
    calibration = calibrate([0.2, 0.5, 0.8], 0.25)
    rows = [comparison("other", evaluation)]
    report = make_report(test_set, "ours", evaluation, scored, calibration, rows, {"Seed": "0"})
    write_results(tmp_path / "out", report, test_set, scored)

    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["image"]["auroc"] == evaluation.image.auroc
    assert results["pixel"]["aupro"] == evaluation.pixel.aupro
    assert [row["defect"] for row in results["per_type"]] == ["spot"]
    assert results["comparisons"][0]["name"] == "other"
    assert results["threshold"] == 0.8
    good, spot = scored.scores[:4], scored.scores[4:]
    assert results["false_reject_rate"]["on_test_normals"] == (good > 0.8).mean()
    assert results["defects_caught"] == (spot > 0.8).mean()

    with (tmp_path / "out/scores.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == [str(path) for path in test_set.paths]
    assert [row["defect"] for row in table] == ["good"] * 4 + ["spot"] * 4
    for row, score in zip(table, scored.scores, strict=True):
        assert float(row["score"]) == pytest.approx(score, rel=1e-5)
        assert row["verdict"] == ("anomalous" if score > 0.8 else "normal")
        assert float(row["p_value"]) == (1 + sum(s >= score for s in (0.2, 0.5, 0.8))) / 4

    with np.load(tmp_path / "out/scores.npz") as arrays:
        assert np.array_equal(arrays["scores"], scored.scores)
        assert list(arrays["defects"]) == ["good"] * 4 + ["spot"] * 4
        np.testing.assert_allclose(arrays["maps"], scored.maps, atol=1e-3)

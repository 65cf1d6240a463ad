import csv
import json
import shutil

import numpy as np
import pytest
from products import SIZE, write_product
from sklearn.metrics import average_precision_score, roc_auc_score
from test_metrics import best_f1, brute_force_aupro

from detect.calibration import calibrate
from detect.evaluation import exact
from detect.evaluation.comparison import comparison
from detect.evaluation.measure import evaluate, native_map
from detect.evaluation.metrics import ImageMetrics, PixelMetrics
from detect.evaluation.results import make_report, write_results
from detect.evaluation.testset import open_test_set
from detect.scoring import ParkedMaps, Scored
from detect.scratch import Scratch
from synth.base.errors import UserError
from synth.base.progress import no_bars
from synth.data.catalog import open_category
from synth.images import read_mask, write_png


@pytest.fixture
def test_set(tmp_path):
    return open_test_set(open_category("mvtec", write_product(tmp_path / "widget")), no_bars)


def known_scores(test_set, size=SIZE):
    rng = np.random.default_rng(0)
    labels = np.array([record.is_anomalous for record in test_set.records])
    maps = rng.random((len(labels), *size), dtype=np.float32)
    for n in np.flatnonzero(labels):
        maps[n, : size[0] // 2] += 0.3
    scores = rng.random(len(labels), dtype=np.float32) + np.float32(0.4) * labels
    return labels, Scored(scores, maps)


def all_masks(test_set):
    return np.stack([test_set.mask(n) for n in range(len(test_set.records))])


def batches(scored, size=3):
    for start in range(0, len(scored.scores), size):
        yield Scored(scored.scores[start : start + size], scored.maps[start : start + size])


def expected_pixels(masks, maps):
    labels, scores = masks.ravel(), maps.ravel()
    return PixelMetrics(
        roc_auc_score(labels, scores),
        average_precision_score(labels, scores),
        best_f1(labels, scores),
        brute_force_aupro(masks, maps, 0.3),
        brute_force_aupro(masks, maps, 0.05),
    )


@pytest.mark.parametrize("stretch", [2**22, 500])
def test_figures_are_those_of_scikit_learn(test_set, tmp_path, monkeypatch, stretch):
    monkeypatch.setattr(exact, "STRETCH_PIXELS", stretch)
    labels, scored = known_scores(test_set)
    scored.maps[:] = scored.maps.round(2)  # few thresholds for the brute force
    found = evaluate(test_set, batches(scored), tmp_path)
    assert found.scores.tolist() == scored.scores.tolist()
    assert found.figures.image == pytest.approx((
        roc_auc_score(labels, scored.scores),
        average_precision_score(labels, scored.scores),
        best_f1(labels, scored.scores),
    ))  # fmt: skip
    masks = all_masks(test_set)
    assert masks.sum() == 4 * 64  # four squares of 8 by 8
    assert found.figures.pixel == pytest.approx(expected_pixels(masks, scored.maps), abs=1e-9)
    assert list(tmp_path.glob("*.tmp")) == []
    assert [path.name for path in tmp_path.iterdir()] == ["widget"]  # nothing is left behind


def test_each_type_is_measured_against_all_normals(tmp_path):
    root = write_product(tmp_path / "widget")
    for kind in ("test", "ground_truth"):
        (root / kind / "dent").mkdir()
        for path in sorted((root / kind / "spot").iterdir())[:2]:
            path.rename(root / kind / "dent" / path.name)
    test_set = open_test_set(open_category("mvtec", root), no_bars)
    labels, scored = known_scores(test_set)
    scored.maps[:] = scored.maps.round(2)
    found = evaluate(test_set, batches(scored))
    assert [(row.defect, row.num_images) for row in found.per_type] == [("dent", 2), ("spot", 2)]
    masks = all_masks(test_set)
    for row in found.per_type:
        kept = [n for n, r in enumerate(test_set.records) if r.defect in ("good", row.defect)]
        expected = roc_auc_score(labels[kept], scored.scores[kept])
        assert row.figures.image.auroc == pytest.approx(expected)
        expected = expected_pixels(masks[kept], scored.maps[kept])
        assert row.figures.pixel == pytest.approx(expected, abs=1e-9)


def test_batches_change_nothing(test_set):
    _, scored = known_scores(test_set)
    one, other = (evaluate(test_set, batches(scored, size)) for size in (1, 8))
    assert one.figures == other.figures
    assert one.per_type == other.per_type
    np.testing.assert_array_equal(one.pixel_samples, other.pixel_samples)


def test_curves_enclose_the_areas(test_set):
    _, scored = known_scores(test_set)
    found = evaluate(test_set, batches(scored))
    assert found.curves is not None
    assert found.curves.pixel_roc is not None
    assert found.curves.pro is not None
    assert found.curves.pro.fpr[-1] == 0.3
    image, pixel = found.figures.image, found.figures.pixel
    for curve, area, limit in (
        (found.curves.image_roc, image.auroc, 1.0),
        (found.curves.pixel_roc, pixel.auroc, 1.0),
        (found.curves.pro, pixel.aupro, 0.3),
    ):
        assert np.trapezoid(curve.height, curve.fpr) / limit == pytest.approx(area, abs=2e-3)
    assert evaluate(test_set, batches(scored), whole=False).curves is None


def test_small_maps_are_measured_at_the_masks_resolution(test_set):
    _, scored = known_scores(test_set, size=(16, 8))
    found = evaluate(test_set, batches(scored))
    grown = np.stack([native_map(m, SIZE) for m in scored.maps])
    assert grown.shape == (len(test_set.records), *SIZE)
    expected = roc_auc_score(all_masks(test_set).ravel(), grown.ravel())
    assert found.figures.pixel is not None
    assert found.figures.pixel.auroc == pytest.approx(expected)


def test_without_masks_only_images_are_measured(tmp_path):
    root = write_product(tmp_path / "widget")
    for mask in (root / "ground_truth/spot").iterdir():
        mask.unlink()
    (root / "ground_truth/spot").rmdir()
    test_set = open_test_set(open_category("folder", root), no_bars)
    assert "figures are of whole images only" in test_set.cautions()[0]
    found = evaluate(test_set, batches(known_scores(test_set)[1]))
    assert (found.figures.pixel, found.pixel_samples) == (None, None)
    assert found.curves is not None
    assert (found.curves.pixel_roc, found.curves.pro) == (None, None)
    assert found.figures.image.auroc > 0.5


def blacken(root, *numbers):
    for number in numbers:
        write_png(root / f"ground_truth/spot/{number:03d}_mask.png", np.zeros(SIZE, np.bool_))


def test_an_empty_mask_is_told_and_its_pixels_are_normal(tmp_path):
    root = write_product(tmp_path / "widget")
    blacken(root, 1)
    test_set = open_test_set(open_category("mvtec", root), no_bars)
    (caution,) = test_set.cautions()
    assert caution.startswith("1 masks of anomalous images are empty, the first: ")
    assert "001_mask.png" in caution
    labels, scored = known_scores(test_set)
    assert labels.sum() == 4  # by folder
    found = evaluate(test_set, batches(scored))
    expected = roc_auc_score(all_masks(test_set).ravel(), scored.maps.ravel())
    assert found.figures.pixel is not None
    assert found.figures.pixel.auroc == pytest.approx(expected)
    assert found.pixel_samples is not None
    assert len(found.pixel_samples) >= 990  # a resample of four times this image is left out


def test_a_type_of_empty_masks_has_no_pixel_figures(tmp_path):
    root = write_product(tmp_path / "widget")
    blacken(root, 0, 1, 2, 3)
    found = evaluate_folder(root)
    assert found.figures.pixel is None  # the only type
    for kind in ("test", "ground_truth"):
        (root / kind / "dent").mkdir()
        (root / kind / "spot").rename(root / kind / "blank")
    write_png(root / "test/dent/000.png", np.full((*SIZE, 3), 9, np.uint8))
    write_png(root / "ground_truth/dent/000_mask.png", np.eye(32, dtype=np.bool_))
    found = evaluate_folder(root)
    assert found.figures.pixel is not None
    blank, dent = found.per_type
    assert (blank.defect, blank.figures.pixel, blank.figures.pixel_intervals) == ("blank", None, {})
    assert dent.figures.pixel is not None


def evaluate_folder(root):
    test_set = open_test_set(open_category("mvtec", root), no_bars)
    return evaluate(test_set, batches(known_scores(test_set)[1]))


def test_soft_masks_are_told(tmp_path):
    root = write_product(tmp_path / "widget")
    soft = np.zeros(SIZE, np.uint8)
    soft[4:9, 4:9], soft[5:8, 5:8] = 60, 255
    write_png(root / "ground_truth/spot/002_mask.png", soft)
    test_set = open_test_set(open_category("mvtec", root), no_bars)
    (caution,) = test_set.cautions()
    assert caution.startswith("1 masks have several levels")
    assert "002_mask.png; every pixel that is not 0 counts as defect" in caution
    assert test_set.mask(6).sum() == 25


@pytest.mark.parametrize("odd", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["scores", "maps"])
def test_scores_that_are_no_numbers_are_refused(test_set, field, odd):
    _, scored = known_scores(test_set)
    getattr(scored, field)[5] = odd
    with pytest.raises(UserError, match="numbers are needed; check the model"):
        evaluate(test_set, batches(scored))


def test_constant_scores_are_worth_nothing(test_set):
    count = len(test_set.records)
    constant = Scored(np.ones(count, np.float32), np.ones((count, *SIZE), np.float32))
    found = evaluate(test_set, batches(constant))
    assert found.figures.image == pytest.approx((0.5, 0.5, 2 / 3))
    share = 4 * 64 / (count * SIZE[0] * SIZE[1])
    expected = (0.5, share, 2 * share / (1 + share), 0.15, 0.025)
    assert found.figures.pixel == pytest.approx(expected)
    assert found.figures.image_intervals == {}  # the same in every resample


def test_differences_are_of_the_same_resamples(test_set):
    _, scored = known_scores(test_set)
    better = Scored(scored.scores + 2 * test_set.labels, scored.maps)
    own = evaluate(test_set, batches(better))
    other = evaluate(test_set, batches(scored), whole=False)
    assert comparison("self", own, own).auroc_gain is None
    row = comparison("other", other, own)
    assert row.auroc_gain is not None
    gains = own.image_samples[:, 0] - other.image_samples[:, 0]
    assert row.auroc_gain == tuple(np.quantile(gains, [0.025, 0.975]))
    assert row.aupro_gain is None  # the same maps
    assert row.image == ImageMetrics(*other.figures.image)


def test_mask_of_another_size_is_named(tmp_path):
    root = write_product(tmp_path / "widget")
    write_png(root / "ground_truth/spot/002_mask.png", np.ones((16, 16), np.bool_))
    with pytest.raises(UserError, match=r"002_mask\.png: the mask is 16x16"):
        open_test_set(open_category("mvtec", root), no_bars)


def test_masks_in_pieces_are_measured_as_one(test_set, tmp_path):
    root = tmp_path / "loco" / "widget"
    shutil.copytree(tmp_path / "widget", root)
    (root / "validation").mkdir()
    shutil.copytree(root / "train/good", root / "validation/good")
    for path in list((root / "ground_truth").rglob("*_mask.png")):
        mask = read_mask(path, SIZE)
        pieces = path.with_name(path.name.removesuffix("_mask.png"))
        for number in range(2):
            stripes = np.indices(SIZE).sum(0) % 2 == number
            write_png(pieces / f"{number:03d}.png", (mask & stripes) * np.uint8(200 + number))
        path.unlink()
    united = open_test_set(open_category("loco", root), no_bars)
    for one, other in zip(all_masks(united), all_masks(test_set), strict=True):
        np.testing.assert_array_equal(one, other)
    assert united.cautions() == test_set.cautions()


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


def report_and_files(test_set, scored, out):
    out.mkdir()
    with Scratch(out) as scratch:
        maps = ParkedMaps(scratch)
        evaluation = evaluate(test_set, maps.park(batches(scored)), out)
        calibration = calibrate([0.2, 0.5, 0.8], 0.25)
        rows = [comparison("other", evaluation)]
        report = make_report(test_set, "ours", evaluation, maps, calibration, rows, {"Seed": "0"})
        write_results(out, report, test_set, maps)
    return report


def test_files_hold_what_was_measured(test_set, tmp_path):
    _, scored = known_scores(test_set)
    report = report_and_files(test_set, scored, tmp_path / "out")
    assert [example.name for example in report.misses] != []
    np.testing.assert_array_equal(
        report.misses[0].anomaly_map, scored.maps[np.argsort(scored.scores[4:])[0] + 4]
    )

    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["image"] == report.image._asdict()
    assert results["pixel"] == report.pixel._asdict() | {"fpr_limit": 0.3}
    low, high = results["intervals"]["pixel"]["aupro"]
    assert low < results["pixel"]["aupro"] < high
    assert results["interval_rule"]["num_resamples"] == 1000
    assert [row["defect"] for row in results["per_type"]] == ["spot"]
    assert results["comparisons"][0]["name"] == "other"
    assert results["comparisons"][0]["image_auroc"] == report.image.auroc
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
        assert arrays["maps"].dtype == np.float16
        np.testing.assert_allclose(arrays["maps"], scored.maps, atol=1e-3)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.json", "scores.csv", "scores.npz"}


def test_maps_beyond_float16_are_kept_as_they_are(test_set, tmp_path):
    _, scored = known_scores(test_set)
    large = Scored(scored.scores, scored.maps * 1e5)
    report_and_files(test_set, large, tmp_path / "out")
    with np.load(tmp_path / "out/scores.npz") as arrays:
        np.testing.assert_array_equal(arrays["maps"], large.maps)

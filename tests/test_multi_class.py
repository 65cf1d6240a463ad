import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command
from detectors import CONFIG
from products import SIZE, normal_image, write_product, write_sources

from detect.checkpoint import load_detector
from detect.data.samples import BlendedDataset, JoinedDataset
from detect.data.sources import Anomaly
from detect.methods.realnet.config import PRESETS
from detect.training.stopping import blended_once
from synth.data.foreground import EVERYTHING, ForegroundRule
from synth.images import write_png

QUICK = ("--method", "realnet", "--num-steps", 2, "--batch-size", 2, "--precision", "fp32")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", replace(CONFIG, num_afs_batches=1, batch_size=2))


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture
def products(tmp_path) -> Path:
    """Two products, of which the nut is much brighter, and their anomaly images."""
    root = tmp_path / "data"
    write_product(root / "bolt", num_train=10, num_test=2)
    write_product(root / "nut", num_train=6, num_test=3)
    for number, path in enumerate(sorted((root / "nut").glob("t*/good/*.png"))):
        write_png(path, normal_image(3000 + number) + 100)
    for name in ("bolt", "nut"):
        write_sources(tmp_path / "sia/folder" / name, category=name, num=3)
    return root


def constant(level):
    return lambda rng, normal: Anomaly(np.full_like(normal, level), (1.0, 1.0))


def joined(**kwargs):
    """Five dark images, only their lower half foreground, get 50; three bright ones get 90."""
    dark = np.zeros((5, *SIZE, 3), np.uint8)
    dark[:, 16:] = 20
    dark[:, 0, 0] = np.arange(5)[:, None]
    bright = np.full((3, *SIZE, 3), 200, np.uint8)
    lower = ForegroundRule(method="otsu")
    parts = [
        BlendedDataset(dark, lower, constant(50), seed=0, **kwargs),
        BlendedDataset(bright, EVERYTHING, constant(90), seed=0, **kwargs),
    ]
    return JoinedDataset(parts, seed=4), np.concatenate([dark, bright])


def test_each_image_keeps_its_foreground_and_its_anomalies():
    data, images = joined(anomalous_share=1.0)
    for number in range(200):
        sample = data[number]
        assert np.array_equal(sample.normal.permute(1, 2, 0).numpy(), images[sample.number])
        assert sample.mask.any()
        changed = sample.image[:, sample.mask].unique().tolist()
        assert changed == ([50] if sample.number < 5 else [90])
        if sample.number < 5:
            assert not sample.mask[:16].any()


def test_every_epoch_shows_every_image_of_all_once():
    data, _ = joined()
    assert data.num_images == 8
    epochs = [[data[8 * epoch + k].number for k in range(8)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    again, _ = joined()
    for number in reversed(range(20)):
        assert torch.equal(again[number].image, data[number].image)


def test_judges_are_of_all_categories():
    data, images = joined(anomalous_share=1.0)
    test = blended_once(data)
    assert len(test.images) == 16
    assert sorted(map(bytes, test.images[:8])) == sorted(map(bytes, images))
    assert not test.masks[:8].any()
    assert test.masks[8:].any((1, 2)).all()


def test_one_detector_for_all_categories(run, products, tmp_path):
    model = tmp_path / "model"
    words = ("detect", "train", "--root", products, "--multi-class", *QUICK, "--out", model)
    words += ("--sia", tmp_path / "sia")
    ended = run(*words)
    assert ended.code == 0, ended
    assert "is of category" not in ended.err
    config = json.loads((model / "config.json").read_text())
    assert config["categories"] == ["bolt", "nut"]
    assert config["data"]["num_images"] == 16
    assert {name: part["num_images"] for name, part in config["source"]["categories"].items()} == {
        "bolt": 3,
        "nut": 3,
    }
    trained = load_detector(model, torch.device("cpu"))
    own = trained.by_category
    assert {name: len(each.scores) for name, each in own.items()} == {"bolt": 2, "nut": 2}
    together = sorted([*own["bolt"].scores, *own["nut"].scores])
    assert list(trained.calibration.scores) == together
    assert trained.calibration_for("nut") == own["nut"]
    assert trained.calibration_for("screw") == trained.calibration
    assert own["bolt"].threshold != own["nut"].threshold
    weights = (model / "model.safetensors").read_bytes()
    assert run(*words).code == 0  # nothing is left to do
    assert (model / "model.safetensors").read_bytes() == weights

    # One category is measured without a warning, by its own threshold.
    evaluate = ("detect", "evaluate", "--root", products, "--model", model)
    ended = run(*evaluate, "--category", "nut", "--out", tmp_path / "nut")
    assert ended.code == 0, ended
    assert "was trained on category" not in ended.err
    nut = json.loads((tmp_path / "nut/results.json").read_text())
    assert nut["threshold"] == own["nut"].threshold
    assert "bolt, nut; 2 more held out" in nut["protocol"]["Training"]
    assert nut["protocol"]["Anomaly source"].startswith("bolt: 3 SDAS images")

    # All categories, and their means.
    ended = run(*evaluate, "--multi-class", "--out", tmp_path / "all")
    assert ended.code == 0, ended
    found = json.loads((tmp_path / "all/categories.json").read_text())
    rows = [json.loads((tmp_path / f"all/{n}/results.json").read_text()) for n in ("bolt", "nut")]
    assert found["categories"]["nut"]["image"]["auroc"] == nut["image"]["auroc"]
    for kind in ("image", "pixel"):
        for name, mean in found["mean"][kind].items():
            assert mean == pytest.approx(np.mean([row[kind][name] for row in rows]))

    # A category that it does not know is told.
    write_product(tmp_path / "screw", num_train=4, num_test=2)
    strange = ("detect", "evaluate", "--root", tmp_path / "screw", "--model", model)
    ended = run(*strange, "--out", tmp_path / "strange")
    line = f"{model} was trained on category bolt and nut, the test images are of screw"
    assert line in ended.err
    assert "not used with --multi-class" in run.refused(*words, "--category", "nut")


def test_refusals_come_before_anything_is_fetched_or_made(run, tmp_path, monkeypatch):
    def fetched(config):
        raise AssertionError("a backbone is asked for")

    monkeypatch.setattr("detect.data.material.build_backbone", fetched)
    for name in ("a", "b"):
        for number in range(4):
            write_png(tmp_path / "loose" / name / f"{number}.png", normal_image(number))
    words = ("detect", "train", "--root", tmp_path / "loose", *QUICK, "--source", "noise")
    words += ("--out", tmp_path / "out")
    line = run.refused(*words, "--multi-class")
    assert "--multi-class: categories in " in line
    assert "loose: loose; give a folder of two or more" in line
    line = run.refused("detect", "evaluate", "--root", tmp_path / "loose", "--multi-class",
                       "--model", tmp_path, "--out", tmp_path / "out")  # fmt: skip
    assert "loose: loose; give a folder of two or more" in line
    assert not (tmp_path / "out").exists()

    lower = ForegroundRule(method="otsu")
    monkeypatch.setattr("synth.data.normals.foreground_for", lambda *args: lower)
    for number in range(4):
        write_png(tmp_path / "loose/b" / f"{number}.png", np.full((*SIZE, 3), number, np.uint8))
    assert "foreground: none found in 1 of 6 normal images" in run.refused(*words)


def test_anomaly_images_of_one_category_for_all_are_told(run, products, tmp_path):
    words = ("detect", "train", "--root", products, "--multi-class", *QUICK, "--patience", 1)
    ended = run(*words, "--out", tmp_path / "out", "--sia", tmp_path / "sia/folder/nut")
    assert ended.code == 0, ended
    assert ended.err.count("is of category nut, the normal images of bolt") == 1
    checks = json.loads((tmp_path / "out/checks.json").read_text())["checks"]
    assert [row["step"] for row in checks] == [1, 2]

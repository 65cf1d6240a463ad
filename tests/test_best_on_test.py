"""Figures on the test split while training: right, labelled, and without any effect."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command
from products import draw_noise, normal_image, write_product
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from detect.data.samples import BlendedDataset
from detect.detector import Batch, Detector, Scores, Stage
from detect.evaluation.best import Best, Moment, best_of
from detect.evaluation.testset import open_test_set
from detect.evaluation.watch import WatchedTests, best_on_test
from detect.training.loop import Feed, train_stages
from detect.training.stopping import Checks, blended_once
from synth.base.device import make_accelerator
from synth.base.errors import UserError
from synth.base.progress import no_bars
from synth.data.catalog import open_category
from synth.data.foreground import EVERYTHING
from synth.images import read_image

SIZE = (32, 32)
NORMALS = np.stack([normal_image(n) for n in range(4)])
JUDGES = blended_once(BlendedDataset(NORMALS, EVERYTHING, draw_noise, seed=7, anomalous_share=1.0))
QUICK = ("--backbone", "resnet10t", "--backbone-weights", "random", "--size", 32, 32)
QUICK = ("--method", "realnet", *QUICK)
QUICK = (*QUICK, "--batch-size", 2, "--precision", "fp32", "--source", "noise")


class Shade(Detector):
    """Maps of a normalisation, a convolution and a frozen weight: all that scoring may disturb."""

    def __init__(self, average: bool) -> None:
        super().__init__()
        self.average = average
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        nn.init.constant_(self.conv.weight, 0.01)
        nn.init.zeros_(self.conv.bias)

    def forward(self, images: Tensor) -> Scores:
        maps = self.frozen * self.conv(self.norm(images))[:, 0]
        return Scores(maps.amax((1, 2)), maps)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return {"error": (self(batch.image).maps - batch.mask.float()).square().mean()}

    def stages(self) -> list[Stage]:
        stage = Stage(name="s", num_steps=8, loss=self.losses, lr=1e-2, average=self.average)
        return [replace(stage, modules=(self.norm, self.conv))]


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> Path:
    return write_product(tmp_path_factory.mktemp("data") / "widget", num_train=6, num_test=3)


@pytest.fixture(scope="module")
def tests(product):
    return [open_test_set(open_category("folder", product), no_bars)]


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


def train(folder, tests=(), average=True, patience=None):
    detector = Shade(average)
    watch = WatchedTests(folder, tests, SIZE, no_bars) if tests else None
    dataset = BlendedDataset(NORMALS, EVERYTHING, draw_noise, seed=0)
    train_stages(
        Feed(make_accelerator("fp32"), dataset, 4),
        detector,
        folder,
        checks=None if patience is None else Checks(folder, JUDGES, patience),
        watch=watch,
    )
    return detector, watch


def same_state(one: Detector, other: Detector) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("average", "patience", "packs"),
    [(True, None, True), (False, None, True), (True, 3, True), (True, None, False)],
)
def test_a_watched_training_is_the_same_bit_for_bit(
    tests, tmp_path, monkeypatch, average, patience, packs
):
    """packs: False takes the way of a GPU, where a detector scores as it is."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: packs)
    plain, _ = train(tmp_path / "plain", (), average, patience)
    watched, watch = train(tmp_path / "watched", tests, average, patience)
    assert same_state(plain, watched)
    steps = list(range(1, 9))
    names = ["s/trace.jsonl"]
    if patience is not None:
        checks = json.loads((tmp_path / "watched/checks.json").read_text())["checks"]
        steps = [row["step"] for row in checks]
        names.append("checks.json")
    assert [row.step for row in watch.rows] == steps
    for name in names:
        files = [tmp_path / folder / name for folder in ("plain", "watched")]
        assert files[0].read_bytes() == files[1].read_bytes()
    states = [load_file(tmp_path / f / "s/state.safetensors") for f in ("plain", "watched")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("average", [True, False])
def test_figures_are_scikit_learns_of_the_weights_that_would_be_kept(tests, tmp_path, average):
    detector, watch = train(tmp_path, tests, average)
    images = np.stack([read_image(path) for path in tests[0].paths])  # of the detector's size
    with torch.no_grad():
        scores = detector(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    last = watch.rows[-1]
    assert last.step == 8
    assert last.image == pytest.approx(roc_auc_score(tests[0].labels, scores.image))
    masks = np.stack([tests[0].mask(number) for number in range(len(images))])
    pixels = roc_auc_score(masks.ravel(), scores.maps.numpy().ravel())
    assert last.pixel == pytest.approx(pixels, abs=1e-5)


def test_interrupted_it_measures_the_same(tests, tmp_path, monkeypatch):
    _, whole = train(tmp_path / "whole", tests)
    kept = WatchedTests.measure

    def stop(watch, scorer, step):
        if step == 3:
            raise KeyboardInterrupt
        return kept(watch, scorer, step)

    monkeypatch.setattr(WatchedTests, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", tests)
    monkeypatch.setattr(WatchedTests, "measure", kept)
    _, again = train(tmp_path / "broken", tests)
    assert again.rows == whole.rows
    files = [tmp_path / name / "watch_test.json" for name in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()
    monkeypatch.setattr(WatchedTests, "measure", None)  # nothing is measured twice
    finished, _ = train(tmp_path / "broken", tests)
    assert same_state(finished, train(tmp_path / "plain")[0])


def test_a_kill_between_a_watch_and_its_check_loses_neither(tests, tmp_path, monkeypatch):
    train(tmp_path / "whole", tests, patience=50)
    kept = Checks.add

    def killed(checks, row, *, write):
        if row.step == 3:
            raise KeyboardInterrupt
        kept(checks, row, write=write)

    monkeypatch.setattr(Checks, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", tests, patience=50)
    monkeypatch.setattr(Checks, "add", kept)
    train(tmp_path / "cut", tests, patience=50)
    for name in ("watch_test.json", "checks.json"):
        files = [tmp_path / folder / name for folder in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_watch_may_begin_when_some_or_all_is_done(tests, tmp_path, monkeypatch):
    _, watch = train(tmp_path / "late")
    assert watch is None
    _, watch = train(tmp_path / "late", tests)
    assert [row.step for row in watch.rows] == [8]
    train(tmp_path / "stopped", patience=1)
    _, watch = train(tmp_path / "stopped", tests, patience=1)
    assert watch.rows == []
    assert watch.sentence(2, 8).endswith("not measured, the training was finished before")


# The command


def test_the_command_says_what_was_best_and_changes_no_file(run, product, tmp_path):
    words = ("detect", "train", "--root", product, *QUICK, "--num-steps", 2, "--out")
    assert run(*words, tmp_path / "plain").code == 0
    ended = run(*words, tmp_path / "watched", "--watch-test")
    assert ended.code == 0, ended
    for name in ("config.json", "calibration.json", "realnet/trace.jsonl"):
        assert (tmp_path / "plain" / name).read_bytes() == (
            tmp_path / "watched" / name
        ).read_bytes()
    states = [load_file(tmp_path / n / "model.safetensors") for n in ("plain", "watched")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    rows = json.loads((tmp_path / "watched/watch_test.json").read_text())["rows"]
    assert [row["step"] for row in rows] == [1, 2]
    (line,) = [line for line in ended.out.splitlines() if line.startswith("best on test")]
    assert line.startswith(
        "best on test (chosen on the test split; only for comparison with papers): image AUROC "
    )
    best = max(row["image_auroc"][0] for row in rows)
    assert f"image AUROC {best:.3f} at step " in line
    assert f"; the last step 2: image AUROC {rows[-1]['image_auroc'][0]:.3f}, pixel AUROC " in line

    # An evaluation has the same figures, and shows what was best beside them.
    evaluate = ("detect", "evaluate", "--root", product, "--out", tmp_path / "results", "--model")
    ended = run(*evaluate, tmp_path / "watched")
    results = json.loads((tmp_path / "results/results.json").read_text())
    assert rows[-1]["image_auroc"] == [results["image"]["auroc"]]
    assert rows[-1]["pixel_auroc"] == [results["pixel"]["auroc"]]
    assert results["best_on_test"]["label"].startswith("best on test (chosen on the test split")
    assert results["best_on_test"]["image_auroc"] == best
    assert results["best_on_test"]["num_moments"] == 2
    assert "and while training; they chose nothing" in results["protocol"]["Test"]
    label = "Best on test (chosen on the test split; only for comparison with papers)"
    assert label in ended.out
    assert label in (tmp_path / "results/report.html").read_text()

    other = write_product(tmp_path / "widget", num_train=6, num_test=2)
    assert best_on_test(tmp_path / "watched", open_category("folder", other)) is None
    line = run.refused(*words, tmp_path / "watched", "--watch-test", "--root", other)
    assert "watch_test.json: of other test images" in line
    assert best_on_test(tmp_path / "plain", open_category("folder", product)) is None


def test_without_both_labels_it_is_refused_before_anything_is_made(run, tmp_path):
    root = write_product(tmp_path / "widget", num_train=6, num_test=2)
    for folder in ("test/spot", "ground_truth"):
        shutil.rmtree(root / folder)
    words = ("detect", "train", "--root", root, *QUICK, "--out", tmp_path / "out")
    line = run.refused(*words, "--watch-test")
    assert "widget: the test images are 2 normal and 0 anomalous" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"tests": [], "rows": [{"step": 1}]},
        {"tests": [{}], "rows": [{"step": 1, "image_auroc": [0.5, 0.5], "pixel_auroc": [0.5]}]},
        {"tests": [{}], "rows": [{"step": 1, "image_auroc": [None], "pixel_auroc": [0.5]}]},
        {"tests": [{}], "rows": 2 * [{"step": 1, "image_auroc": [0.5], "pixel_auroc": [None]}]},
    ],
)
def test_a_damaged_file_is_told_in_one_line(tests, tmp_path, written):
    (tmp_path / "watch_test.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"watch_test\.json: damaged .*; delete this file"):
        WatchedTests(tmp_path, tests, SIZE, no_bars)


# Arithmetic


def test_each_figure_has_a_best_of_its_own_and_the_first_of_equals():
    rows = [
        Moment(10, (0.9, 0.7), (0.5, 0.5)),
        Moment(20, (0.8, 0.8), (0.6, 0.8)),
        Moment(30, (1.0, 0.2), (0.1, 0.1)),
    ]
    assert best_of(rows) == Best(3, pytest.approx(0.8), 10, pytest.approx(0.7), 20)
    assert best_of([row.of(0) for row in rows]) == Best(3, 1.0, 30, 0.6, 20)
    bare = [row._replace(pixel_auroc=(0.5, None)) for row in rows]
    assert best_of(bare)[3:] == (None, None)

"""Early stopping: what is checked, when it ends, and that it changes nothing else."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from products import draw_noise, normal_image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

from detect.data.samples import BlendedDataset
from detect.detector import Batch, Detector, Scores, Stage
from detect.scoring import detector_scorer
from detect.training.loop import Feed, train_stages
from detect.training.stopping import Check, Checks, blended_once, make_check, without_judges
from synth.base.errors import UserError
from synth.data.catalog import Category, Record
from synth.data.foreground import EVERYTHING
from synth.data.normals import Normals

NORMALS = np.stack([normal_image(n) for n in range(4)])
TEST = blended_once(BlendedDataset(NORMALS, EVERYTHING, draw_noise, seed=7, anomalous_share=1.0))


class Bias(Detector):
    """Scores are a parameter times the red channel; batch normalisation has buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)
        self.factor = nn.Parameter(torch.zeros(()))
        self.norm = nn.BatchNorm2d(3, affine=False)

    def forward(self, images: Tensor) -> Scores:
        maps = self.factor * self.norm(images)[:, 0]
        return Scores(maps.amax((1, 2)), maps)

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return {"error": (self(batch.image).maps - batch.mask.float()).square().mean()}

    def stages(self) -> list[Stage]:
        stage = Stage(name="s", num_steps=40, loss=self.losses, lr=1e-2)
        return [replace(stage, modules=(self.norm,), parameters=(self.factor,))]


def train(folder, checks=None, detector=None):
    detector = detector or Bias()
    dataset = BlendedDataset(NORMALS, EVERYTHING, draw_noise, seed=0)
    train_stages(Feed(Accelerator(cpu=True), dataset, 4), detector, folder, checks=checks)
    return detector


def checks_of(folder, values, patience=3):
    (folder / "best.safetensors").touch()
    checks = Checks(folder, TEST, patience)
    for n, value in enumerate(values, start=1):
        checks.add(Check(10 * n, value, value))
    return checks


def test_a_synthetic_test_is_each_image_untouched_and_blended():
    assert TEST.images.shape == (8, *NORMALS.shape[1:])
    assert sorted(map(bytes, TEST.images[:4])) == sorted(map(bytes, NORMALS))
    assert not TEST.masks[:4].any()
    assert TEST.masks[4:].any(axis=(1, 2)).all()
    assert TEST.labels.tolist() == [False] * 4 + [True] * 4
    changed = (TEST.images[:4] != TEST.images[4:]).any(axis=3)
    assert not (changed & ~TEST.masks[4:]).any()


def test_figures_are_scikit_learns():
    detector = Bias()
    nn.init.ones_(detector.factor)
    row = make_check(detector_scorer(detector, torch.device("cpu")), TEST, 5, batch_size=3)
    scored = detector_scorer(detector, torch.device("cpu"))(TEST.images)
    ap = average_precision_score(TEST.masks.ravel(), scored.maps.ravel())
    assert row.step == 5
    assert row.image_auroc == pytest.approx(roc_auc_score(TEST.labels, scored.scores))
    assert row.pixel_average_precision == pytest.approx(ap, abs=1e-6)


def test_checks_end_after_patience_and_name_the_first_best(tmp_path):
    checks = checks_of(tmp_path, [0.5, 0.8, 0.8, 0.7])
    assert checks.best.step == 20
    assert not checks.finished
    assert checks.goals(100)[:2] == [45, 50]
    checks.add(Check(50, 0.6, 0.6))
    assert checks.finished
    assert checks.goals(100) == []
    assert Checks(tmp_path, TEST, 3).rows == checks.rows  # from the file
    assert not Checks(tmp_path, TEST, 4).finished


def test_goals_are_twenty_and_end_at_the_last_step(tmp_path):
    goals = Checks(tmp_path, TEST, 3).goals(405)
    assert goals == [*range(20, 405, 20), 405]
    assert Checks(tmp_path, TEST, 3).goals(3) == [1, 2, 3]


def test_checking_does_not_change_the_training(tmp_path):
    train(tmp_path / "plain")
    checks = Checks(tmp_path / "checked", TEST, 100)
    train(tmp_path / "checked", checks)
    traces = [(tmp_path / name / "s" / "trace.jsonl").read_text() for name in ("plain", "checked")]
    assert traces[0] == traces[1]
    assert [row.step for row in checks.rows] == list(range(2, 41, 2))


def test_the_best_weights_are_kept_and_a_finished_training_stays_as_it_is(tmp_path, monkeypatch):
    values = iter([0.5, 0.9, 0.6, 0.7, 0.8])
    seen: list[float] = []

    def judge(scorer, test, step, batch_size):
        seen.append(float(detector.factor.detach()))
        value = next(values)
        return Check(step, value, value)

    monkeypatch.setattr("detect.training.loop.make_check", judge)
    detector = Bias()
    checks = Checks(tmp_path, TEST, 3)
    train(tmp_path, checks, detector)
    assert [row.step for row in checks.rows] == [2, 4, 6, 8, 10]
    assert float(detector.factor.detach()) == seen[1] != seen[-1]
    assert set(load_file(tmp_path / "best.safetensors")) == {
        "factor", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip

    again = train(tmp_path, Checks(tmp_path, TEST, 3))
    assert float(again.factor.detach()) == seen[1]
    rows = json.loads((tmp_path / "checks.json").read_text())["checks"]
    assert len(rows) == 5


def test_an_interrupted_training_checks_the_same_weights(tmp_path, monkeypatch):
    whole = Checks(tmp_path / "whole", TEST, 100)
    train(tmp_path / "whole", whole)
    broken = Checks(tmp_path / "broken", TEST, 100)
    rows: list[Check] = []

    def stop(scorer, test, step, batch_size):
        if step == 8:
            raise KeyboardInterrupt
        rows.append(make_check(scorer, test, step, batch_size))
        return rows[-1]

    monkeypatch.setattr("detect.training.loop.make_check", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", broken)
    monkeypatch.setattr("detect.training.loop.make_check", make_check)
    again = Checks(tmp_path / "broken", TEST, 100)
    train(tmp_path / "broken", again)
    assert len(rows) == 3
    assert again.rows == whole.rows


def test_judges_are_trained_on_by_nobody(tmp_path):
    images = np.stack([normal_image(n) for n in range(20)])
    images[19] = images[3]  # a copy goes where the first goes
    records = [
        Record(path=tmp_path / f"{n}.png", split="train", defect="good", mask_path=None)
        for n in range(20)
    ]
    category = Category(dataset="folder", name="c", records=tuple(records))
    held = images[:2]
    normals = Normals(category, records[2:], images[2:], records[:2], held)
    rest, judges = without_judges(normals)
    assert len(rest.fit) + len(judges) == 18
    assert 2 <= len(judges) <= 3
    assert not {*map(bytes, rest.fit)} & {*map(bytes, judges)}
    assert [images[records.index(r)].tobytes() for r in rest.fit_records] == [
        image.tobytes() for image in rest.fit
    ]
    assert rest.held is held
    assert rest.category == category


def test_judges_need_a_picture_besides_the_one_to_train_on(tmp_path):
    images = np.stack([normal_image(n) for n in (0, 1, 1)])
    records = [
        Record(path=tmp_path / f"{n}.png", split="train", defect="good", mask_path=None)
        for n in range(3)
    ]
    category = Category(dataset="folder", name="c", records=tuple(records))
    with pytest.raises(UserError, match="--patience: c has one picture"):
        without_judges(Normals(category, records[1:], images[1:], records[:1], images[:1]))


def test_of_two_pictures_with_many_copies_one_is_left_to_train_on(tmp_path):
    images = np.stack([normal_image(n % 2) for n in range(40)])
    records = [
        Record(path=tmp_path / f"{n}.png", split="train", defect="good", mask_path=None)
        for n in range(40)
    ]
    category = Category(dataset="folder", name="c", records=tuple(records))
    rest, judges = without_judges(Normals(category, records, images, [], images[:0]))
    assert (len(rest.fit), len(judges)) == (20, 20)


ROW = {"step": 2, "image_auroc": 0.5, "pixel_average_precision": 0.5}


@pytest.mark.parametrize(
    "written",
    [
        {},
        [],
        {"checks": 3},
        {"checks": [{}]},
        {"checks": [{**ROW, "step": "2"}]},
        {"checks": [{**ROW, "image_auroc": None}]},
        {"checks": [{**ROW, "more": 1}]},
        {"checks": [ROW, ROW]},
    ],
)
def test_checks_that_are_not_ours_are_told_in_one_line(tmp_path, written):
    checks_of(tmp_path, [0.5])
    (tmp_path / "checks.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"checks\.json: .*; delete .* and train again$"):
        Checks(tmp_path, TEST, 3)


def test_best_weights_that_are_missing_or_damaged_are_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "detect.training.loop.make_check",
        lambda scorer, test, step, batch_size: Check(step, 0.5, 0.5),
    )
    train(tmp_path, Checks(tmp_path, TEST, 1))
    best = tmp_path / "best.safetensors"
    whole = best.read_bytes()
    for damaged in (whole[:20], whole.replace(b'"factor"', b'"facing"')):
        best.write_bytes(damaged)
        with pytest.raises(UserError, match=r"best\.safetensors: damaged .*; delete") as refused:
            train(tmp_path, Checks(tmp_path, TEST, 1))
        assert "\n" not in str(refused.value)
    best.unlink()
    with pytest.raises(UserError, match=r"best\.safetensors: missing"):
        Checks(tmp_path, TEST, 1)

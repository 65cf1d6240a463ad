"""Training runs as a whole: several categories, weights to start from, looks on the way."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command
from older import without_run
from products import write_product
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import write_model

import synth.making.looks
import synth.making.train
import synth.quality.reference
from synth.base.errors import UserError
from synth.base.files import write_json
from synth.base.locks import sole_user
from synth.base.progress import no_bars
from synth.data.catalog import Category, categories, open_category
from synth.diffusion.config import RunConfig, TrainConfig, UNetConfig
from synth.diffusion.init_from import load_source
from synth.diffusion.model import load_model
from synth.diffusion.sampling import sample_images
from synth.diffusion.training import Learner
from synth.images import read_image, write_png
from synth.making.train import train_model
from synth.quality.reference import load_reference

CPU = torch.device("cpu")
UNET = UNetConfig(
    image_size=(16, 16),
    block_channels=(8, 16),
    attention_levels=(1,),
    head_channels=8,
    norm_groups=4,
)
CONFIG = TrainConfig(unet=UNET, num_steps=2, batch_size=4, precision="fp32")


@pytest.fixture(autouse=True)
def quick_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check's verdict does not matter here: few samples, and no trained weights."""
    untrained = replace(synth.quality.reference.DEFAULT_BACKBONE, weights="random")
    monkeypatch.setattr(synth.quality.reference, "DEFAULT_BACKBONE", untrained)
    monkeypatch.setattr(synth.making.train, "NUM_CHECK_SAMPLES", 2)
    for module in (synth.making.train, synth.making.looks):
        monkeypatch.setattr(module, "NUM_SHEET_IMAGES", 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories, of 10 and of 5 normal images."""
    folder = tmp_path_factory.mktemp("data")
    write_product(folder / "nut", num_test=1)
    write_product(folder / "bolt", num_train=5, num_test=1)
    return folder


def opened(root: Path, *names: str) -> list[Category]:
    return [open_category("folder", root, name) for name in names]


def test_one_model_for_several_categories(root: Path, tmp_path: Path) -> None:
    run = RunConfig(sample_every=2, keep_checkpoints=1)
    checks = train_model(opened(root, "nut", "bolt"), CONFIG, tmp_path, no_bars, run=run)
    assert checks is not None
    assert list(checks) == ["nut", "bolt"]
    written = json.loads((tmp_path / "check.json").read_text())["categories"]
    assert {name: check["num_held_out"] for name, check in written.items()} == {
        name: check.num_held_out for name, check in checks.items()
    }
    model = load_model(tmp_path, CPU)
    assert model.conditional
    assert model.categories == ["nut", "bolt"]
    assert model.config["category"] is None
    assert model.unet.state_dict()["class_embedding.weight"].shape == (2, 32)
    for name in model.categories:
        assert load_reference(tmp_path, name).image_size == (16, 16)
        assert read_image(tmp_path / f"samples-{name}.png").shape[2] == 3
        assert sample_images(model, [0.1], 0, [0], 2, name).shape == (1, 16, 16, 3)
    with pytest.raises(UserError, match="knows several; choose one of nut, bolt"):
        sample_images(model, [0.1], 0, [0], 2)
    with pytest.raises(UserError, match="knows no 'cog'; it knows nut, bolt"):
        sample_images(model, [0.1], 0, [0], 2, "cog")
    assert load_model(tmp_path / "checkpoints/step_000002", CPU).categories == ["nut", "bolt"]


def test_a_conditional_model_without_its_names_is_none(root: Path, tmp_path: Path) -> None:
    conditional = replace(UNET, num_categories=2)
    write_model(tmp_path, conditional, categories=["nut"])
    with pytest.raises(UserError, match="not a diffusion model"):
        load_model(tmp_path, CPU)


def test_looks_leave_sheets_models_and_curves(root: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, num_steps=3)
    run = RunConfig(sample_every=1, keep_checkpoints=2, tracker="tensorboard")
    train_model(opened(root, "nut"), config, tmp_path / "looked", no_bars, run=run)
    sheets = sorted(path.name for path in (tmp_path / "looked/samples").iterdir())
    assert sheets == ["step_000001.png", "step_000002.png", "step_000003.png"]
    kept = sorted((tmp_path / "looked/checkpoints").iterdir())
    assert [folder.name for folder in kept] == ["step_000002", "step_000003"]
    last, final = load_model(kept[1], CPU), load_model(tmp_path / "looked", CPU)
    assert last.digest == final.digest
    assert load_model(kept[0], CPU).digest != final.digest
    assert last.config["step"] == 3
    events = EventAccumulator(str(tmp_path / "looked/siaforge"))
    events.Reload()
    rows = (tmp_path / "looked/trace.jsonl").read_text().splitlines()
    for logged, row in zip(events.Scalars("loss"), map(json.loads, rows), strict=True):
        assert logged.step == row["step"]
        assert logged.value == pytest.approx(row["loss"])
    train_model(opened(root, "nut"), config, tmp_path / "plain", no_bars)
    assert load_model(tmp_path / "plain", CPU).digest == final.digest


def test_a_grey_product_keeps_the_colours_of_what_it_starts_from(
    root: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    source = load_source(str(write_model(tmp_path / "source", UNET)))
    config = replace(CONFIG, num_steps=1, learning_rate=1e-12)
    out = tmp_path / "out"
    nut = opened(root, "nut")
    train_model(nut, config, out, no_bars, source=source, tell=told.append)
    assert "keeps the 3 channels" in told[0]
    assert told[1] == f"starting from source: {len(source.weights)} tensors fit"
    model = load_model(out, CPU)
    assert model.num_channels == 3
    assert model.config["init"]["digest"] == source.digest
    assert (model.config["init"]["fresh"], model.config["init"]["unused"]) == ([], [])
    for name, value in model.unet.state_dict().items():
        torch.testing.assert_close(value, source.weights[name], rtol=0, atol=1e-9)

    other = load_source(str(write_model(tmp_path / "other", UNET, seed=1)))
    with pytest.raises(UserError, match=r"init\.digest: "):
        train_model(nut, config, out, no_bars, source=other)
    with pytest.raises(UserError, match=r"init: .* null here"):
        train_model(nut, config, out, no_bars)


def test_what_changes_no_result_may_change_when_a_run_goes_on(root: Path, tmp_path: Path) -> None:
    train_model(opened(root, "nut"), CONFIG, tmp_path, no_bars)
    run = RunConfig(accumulate=2, gradient_checkpointing=True, sample_every=3)
    train_model(opened(root, "nut"), replace(CONFIG, num_steps=3), tmp_path, no_bars, run=run)
    assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == 3
    with pytest.raises(UserError, match=r"train\.rotate: false there, true here"):
        train_model(opened(root, "nut"), replace(CONFIG, rotate=True), tmp_path, no_bars)
    with pytest.raises(UserError, match="made with another configuration"):
        train_model(opened(root, "nut", "bolt"), CONFIG, tmp_path, no_bars)


def test_a_folder_of_the_first_version_loads_and_goes_on(root: Path, tmp_path: Path) -> None:
    train_model(opened(root, "nut"), CONFIG, tmp_path, no_bars)
    config = json.loads((tmp_path / "config.json").read_text())
    train, unet = config["train"], config["train"]["unet"]
    del train["rotate"], unet["style"], unet["num_categories"]
    unet["attention_levels"] = 1
    write_json(tmp_path / "config.json", config)
    without_run(tmp_path)
    assert load_model(tmp_path, CPU).categories == ["nut"]
    train_model(opened(root, "nut"), replace(CONFIG, num_steps=3), tmp_path, no_bars)
    assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == 3


def test_two_commands_do_not_train_in_one_folder(root: Path, tmp_path: Path) -> None:
    with sole_user(tmp_path), pytest.raises(UserError, match="another command is at work in it"):
        train_model(opened(root, "nut"), CONFIG, tmp_path, no_bars)
    assert not any(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_keeps_the_last_state(root: Path, tmp_path: Path) -> None:
    weights = load_source(str(write_model(tmp_path / "source", replace(UNET, num_channels=1))))
    broken = dict(weights.weights) | {"conv_in.bias": torch.full((8,), torch.nan)}
    source = weights._replace(weights=broken)
    with pytest.raises(UserError, match=r"the loss became .*nan.* at step 1"):
        train_model(opened(root, "nut"), CONFIG, tmp_path / "out", no_bars, source=source)


# Mistakes at the command line


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_choices_that_contradict_each_other(run: Command, root: Path, tmp_path: Path) -> None:
    train = ("synth", "train", "--root", root, "--precision", "fp32", "--out", tmp_path / "out")
    several = (*train, "--conditional")
    for words, message in [
        ((*train, "--category", "nut", "--categories", "nut", "bolt"), "made with --conditional"),
        ((*several, "--category", "nut"), "choose them with --categories"),
        ((*several, "--categories", "nut"), "got the categories nut; needs two or more"),
        ((*several, "--categories", "nut", "nut"), "needs two or more, each once"),
        ((*several, "--categories", "nut", "cog"), "no 'cog'"),
        ((*several, "--keep-checkpoints", 2), "give --sample-every too"),
        ((*several, "--accumulate", 0), "--accumulate: got 0"),
        ((*several, "--accumulate", 3, "--size", 16, 16), "must be a multiple of 3"),
        ((*several, "--rotate", "--size", 16, 32), "rotate: got images of 16x32"),
        ((*several, "--preset", "base", "--size", 100, 128), "try 96 for 100"),
        ((*several, "--init-from", tmp_path / "nothing"), "--init-from: no file or folder"),
        ((*several, "--init-from", root), "no diffusers network"),
        ((*several, "--tracker", "wandb"), "--tracker: wandb is not installed"),
    ]:
        assert message in run.refused(*words), words


def test_a_category_with_one_image(run: Command, tmp_path: Path) -> None:
    write_product(tmp_path / "data/nut", num_train=4, num_test=0)
    write_png(tmp_path / "data/bolt/train/good/0.png", np.zeros((16, 16, 3), np.uint8))
    words = ("synth", "train", "--root", tmp_path / "data", "--conditional", "--size", 16, 16)
    assert categories("folder", tmp_path / "data") == ["bolt", "nut"]
    assert "bolt: got 1 training image" in run.refused(*words, "--out", tmp_path / "out")


def test_the_size_must_fit_the_source_not_the_preset(
    run: Command, root: Path, tmp_path: Path
) -> None:
    write_model(tmp_path / "source", UNET)
    words = ("synth", "train", "--root", root, "--category", "nut", "--preset", "base")
    words = (*words, "--init-from", tmp_path / "source", "--precision", "fp32")
    words = (*words, "--out", tmp_path / "out")
    assert "image size: got 17x16" in run.refused(*words, "--size", 17, 16)
    ended = run(*words, "--size", 18, 16, "--num-steps", 1, "--batch-size", 2)
    assert ended.code == 0, ended
    assert "starting from source:" in ended.out
    assert load_model(tmp_path / "out", CPU).image_size == (18, 16)


def test_out_of_memory_names_options_that_there_are(
    run: Command, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(synth.making.train, "train_model", fails)
    words = ("synth", "train", "--root", root, "--category", "nut", "--out", tmp_path)
    line = run.refused(*words)
    help_text = run("synth", "train", "--help").out
    named = [word.strip(",") for word in line.split() if word.startswith("--")]
    assert named == ["--accumulate", "--gradient-checkpointing", "--size"]
    assert all(option in help_text for option in named)


# A time in place of a number of steps


def test_minutes_become_a_number_of_steps_once(root, tmp_path, monkeypatch):
    told: list[str] = []
    train = partial(train_model, opened(root, "nut"), CONFIG, bars=no_bars, tell=told.append)
    measured = []

    def seconds_per_step(learner: Learner) -> float:
        seconds = Learner.measure(learner)
        measured.append(seconds)
        return 0.5

    monkeypatch.setattr(Learner, "measure", Learner.seconds_per_step, raising=False)
    monkeypatch.setattr(Learner, "seconds_per_step", seconds_per_step)
    train(out=tmp_path / "a", minutes=1.6 / 60)
    assert told == ["3 steps of 0.5 s: the same model as --num-steps 3"]
    assert len(measured) == 1
    assert 0 < measured[0] < 10
    train_model(opened(root, "nut"), replace(CONFIG, num_steps=3), tmp_path / "b", no_bars)
    one, other = (load_model(tmp_path / name, CPU).digest for name in "ab")
    assert one == other
    train(out=tmp_path / "a", minutes=1.6 / 60)  # goes on, by the speed at its start
    train(out=tmp_path / "a", minutes=2.6 / 60)
    assert told[1:] == [told[0], "5 steps of 0.5 s: the same model as --num-steps 5"]
    assert len(measured) == 1
    assert len((tmp_path / "a/trace.jsonl").read_text().splitlines()) == 5
    with pytest.raises(UserError, match=r"--num-steps: got 3, but .* has already trained for 5"):
        train_model(opened(root, "nut"), replace(CONFIG, num_steps=3), tmp_path / "a", no_bars)


def test_a_time_in_which_nothing_can_be_done_is_refused(root, tmp_path):
    write_json(tmp_path / "speed.json", {"seconds_per_step": 90.0})
    line = r"--minutes: got 1, but one step takes 90 s here; give at least 1.5, or a smaller --pre"
    with pytest.raises(UserError, match=line):
        train_model(opened(root, "nut"), CONFIG, tmp_path, no_bars, minutes=1)
    (tmp_path / "speed.json").write_text("{}")
    with pytest.raises(UserError, match=r"speed.json: damaged; delete it"):
        train_model(opened(root, "nut"), CONFIG, tmp_path, no_bars, minutes=1)


@pytest.mark.parametrize("more", [("--minutes", 0), ("--minutes", 2, "--num-steps", 3)])
def test_a_time_that_is_none_is_refused(root, tmp_path, monkeypatch, capsys, more):
    command = Command(monkeypatch, capsys)
    line = command.refused("synth", "train", "--root", root / "nut", "--out", tmp_path, *more)
    assert line.startswith("synth: --minutes: got ")

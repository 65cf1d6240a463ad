"""The registry of methods, and `detect train` with each of them."""

import json
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command
from detectors import CONFIG
from older import without_run
from products import write_product
from safetensors.torch import load_file

import detect
from detect.checkpoint import load_detector
from detect.commands.train import RareOptions, train
from detect.evaluation.protocol import detector_facts, detector_name
from detect.images import to_chw, to_unit
from detect.methods import METHODS, csflow, csflow_nn, patch_nn, validflow
from detect.methods.glancing import detector as glancing
from detect.methods.patch_nn import PatchNN, PatchNNConfig
from detect.methods.realnet import afs, nearest
from detect.methods.realnet.config import PRESETS
from detect.options import BasicOptions, TrainOptions
from synth.base import cache
from synth.base.errors import UserError
from synth.data.catalog import held_out, open_category
from synth.data.options import DataOptions
from synth.images import read_image, resize

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, tmp_path):
    monkeypatch.setitem(PRESETS, "tiny", replace(CONFIG, num_afs_batches=1, batch_size=2))
    backbone = replace(CONFIG.backbone, layers=(2, 3))
    bank = PatchNNConfig(image_size=CONFIG.image_size, backbone=backbone, bank_size=30)
    for recipe in (patch_nn.RANDOM, patch_nn.CORESET):
        choice = recipe.presets["tiny"].choice
        monkeypatch.setitem(recipe.presets, "tiny", replace(bank, choice=choice))
    nearest_tiny = replace(
        nearest.PRESETS["tiny"],
        image_size=CONFIG.image_size,
        backbone=backbone,
        num_selected=(4, 4),
        num_max=3,
        num_mean=3,
        bank_size=30,
        num_steps=2,
        batch_size=2,
        num_afs_batches=1,
    )
    monkeypatch.setitem(nearest.PRESETS, "tiny", nearest_tiny)
    shape = {"image_size": (32, 32), "backbone": replace(backbone, layers=(2,)), "hidden": 4}
    shape |= {"num_steps": 2, "batch_size": 2}
    csflow_tiny = replace(csflow.PRESETS["tiny"], kernels=(3,), **shape)
    monkeypatch.setitem(csflow.PRESETS, "tiny", csflow_tiny)
    csflow_nn_tiny = csflow_nn.CSFlowNNConfig(**vars(csflow_tiny), bank_size=30)
    monkeypatch.setitem(csflow_nn.PRESETS, "tiny", csflow_nn_tiny)
    validflow_tiny = replace(validflow.PRESETS["tiny"], num_modules=1, **shape)
    monkeypatch.setitem(validflow.PRESETS, "tiny", validflow_tiny)
    glancing_tiny = replace(
        glancing.PRESETS["tiny"],
        image_size=(64, 64),
        backbone=replace(backbone, layers=(2,)),
        num_features=4,
        widths=(4, 4, 4),
        patches_per_image=2,
        distil_steps=2,
        tune_steps=2,
        num_steps=2,
        batch_size=2,
    )
    monkeypatch.setitem(glancing.PRESETS, "tiny", glancing_tiny)
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def run(monkeypatch, capsys):
    return Command(monkeypatch, capsys)


@pytest.fixture
def product(tmp_path) -> Path:
    return write_product(tmp_path / "widget", num_train=6)


def words(product: Path, out: Path, method: str, *more):
    source = ("--source", "noise") if METHODS[method].needs_anomalies else ()
    fixed = () if "--precision" in more else ("--precision", "fp32")
    given = ("--root", product, "--out", out, "--method", method, *source, *fixed)
    return ("detect", "train", *given, *more)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_trained_loaded_and_named(run, product, tmp_path, name):
    ended = run(*words(product, tmp_path / "out", name))
    assert ended.code == 0, ended
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["method"] == name
    assert config["precision"] == "fp32"
    assert ("foreground" in config) == METHODS[name].needs_anomalies
    trained = load_detector(tmp_path / "out", CPU)
    assert detector_name(trained).startswith(METHODS[name].title)
    before = (tmp_path / "out/model.safetensors").read_bytes()
    assert run(*words(product, tmp_path / "out", name)).code == 0
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    line = run.refused(*words(product, tmp_path / "out", name, "--seed", 1))
    assert "detector.seed: 0 there, 1 here" in line


@pytest.mark.parametrize("name", METHODS)
def test_stages_are_those_that_the_configuration_tells_of(run, product, tmp_path, name):
    assert run(*words(product, tmp_path, name)).code == 0
    trained = load_detector(tmp_path, CPU)
    stages = {stage.name: stage.num_steps for stage in trained.detector.stages()}
    config = (
        METHODS[name]
        .recipe()
        .config.from_json(
            {**trained.config["detector"], **({"num_steps": trained.num_steps} if stages else {})}
        )
    )
    assert config.stage_steps == stages
    assert {path.parent.name for path in tmp_path.rglob("state.safetensors")} == set(stages)


@pytest.mark.parametrize(
    "option",
    [
        ("--num-steps", 3), ("--num-epochs", 3), ("--batch-size", 2), ("--learning-rate", 0.1),
        ("--patience", 2),
        ("--workers", 1), ("--precision", "bf16"), ("--official",), ("--foreground", "everything"),
        ("--source", "noise"), ("--sia", "x"), ("--textures", "x"), ("--watch-test",),
        ("--tracker", "tensorboard"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused_in_one_line(run, tmp_path, option):
    line = run.refused(*words(tmp_path / "none", tmp_path / "out", "patch-nn", *option))
    assert line == f"detect: {option[0]}: not used by --method patch-nn; leave it out"


def test_arithmetic_that_a_method_computes_in_is_not_refused(run, product, tmp_path):
    assert run(*words(product, tmp_path / "out", "patch-nn", "--precision", "fp32")).code == 0
    TrainOptions(method="patch-nn", precision="auto").require_used()


def test_an_unknown_method_is_refused(run, tmp_path):
    line = run.refused("detect", "train", "--out", tmp_path, "--method", "realnot")
    assert line.startswith("detect: --method: got realnot, allowed: realnet, realnet-nn, patch-nn")
    with pytest.raises(UserError, match="--preset: got paper-c, allowed for patch-nn: tiny"):
        TrainOptions(method="patch-nn", preset="paper-c").check()


def test_a_bank_of_several_categories_has_patches_of_each(run, tmp_path):
    for name in ("gadget", "widget"):
        write_product(tmp_path / "data" / name, num_train=4)
    ended = run(*words(tmp_path / "data", tmp_path / "out", "patch-nn", "--multi-class"))
    assert ended.code == 0, ended
    trained = load_detector(tmp_path / "out", CPU)
    assert trained.categories == ("gadget", "widget")
    assert set(trained.by_category) == {"gadget", "widget"}
    assert isinstance(trained.detector, PatchNN)
    assert trained.detector.bank.shape[0] == 30


@pytest.mark.parametrize("average", [True, False])
def test_flows_keep_the_weights_that_their_facts_name(run, product, tmp_path, monkeypatch, average):
    monkeypatch.setitem(csflow.PRESETS, "tiny", replace(csflow.PRESETS["tiny"], average=average))
    assert run(*words(product, tmp_path, "csflow")).code == 0
    state, kept = (
        load_file(tmp_path / name) for name in ("flow/state.safetensors", "model.safetensors")
    )
    assert any(name.startswith("ema.") for name in state) == average
    last = {name: kept[name.removeprefix("model.")] for name in state if name.startswith("model.")}
    assert len(last) > 10
    assert all(torch.equal(state[name], last[name]) for name in last) != average
    averaged = "averaged " if average else ""
    facts = detector_facts(load_detector(tmp_path, CPU))
    assert facts.endswith(f"; 2 steps of 2 images, {averaged}weights of the last step")


def test_csflow_with_nearest_patches_adds_its_parents_in_spreads(run, tmp_path):
    product = write_product(tmp_path / "widget", num_train=40)
    detectors = {}
    for name in ("csflow-nn", "csflow", "patch-nn-coreset"):
        assert run(*words(product, tmp_path / name, name)).code == 0
        detectors[name] = load_detector(tmp_path / name, CPU).detector
    held = [record.path for record in held_out(open_category("folder", product))[1]]
    normal = [to_unit(to_chw(resize(read_image(path), (32, 32)))[None]) for path in held]
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = 0
    for name in ("csflow", "patch-nn-coreset"):
        scores = np.array([detectors[name].predict(image).image.item() for image in normal])
        median = lower_median(scores)
        spread = lower_median(np.abs(scores - median))
        assert spread > 1e-3
        expected += (detectors[name].predict(x).image - median) / spread
    both = detectors["csflow-nn"].predict(x)
    torch.testing.assert_close(both.image, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(both.maps, detectors["patch-nn-coreset"].predict(x).maps)


def lower_median(values: np.ndarray) -> float:
    return np.sort(values)[(len(values) - 1) // 2]


def test_equal_held_out_scores_leave_a_finite_score(run, product, tmp_path):
    assert run(*words(product, tmp_path / "out", "csflow-nn")).code == 0
    detector = load_detector(tmp_path / "out", CPU).detector
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    detector.measure_held_out([x[:1], x[:1]])
    assert detector.predict(x).image.isfinite().all()


def test_older_coreset_detectors_are_loaded(run, product, tmp_path):
    """They were recorded as patch-nn with a choice."""
    assert run(*words(product, tmp_path, "patch-nn-coreset")).code == 0
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "method": "patch-nn"}))
    detector = load_detector(tmp_path, CPU).detector
    assert isinstance(detector, PatchNN)
    assert detector.config.choice == "coreset"


def test_an_older_state_with_the_whole_detector_is_continued(run, product, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    assert run(*words(product, tmp_path / "a", "realnet", "--num-steps", 2)).code == 0
    assert run(*words(product, tmp_path / "b", "realnet", "--num-steps", 4)).code == 0
    path = tmp_path / "a/realnet/state.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    whole = load_file(tmp_path / "a/model.safetensors")
    whole = {f"model.{name}": tensor for name, tensor in whole.items()}
    save_file({**whole, **load_file(path)}, path, metadata)
    assert run(*words(product, tmp_path / "a", "realnet", "--num-steps", 4)).code == 0
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_way_from_the_command_to_the_afs_loss_is_short(product, tmp_path, monkeypatch):
    frames = list[traceback.FrameSummary]()

    def stop(*_):
        frames.extend(traceback.extract_stack()[:-1])
        raise UserError("seen")

    monkeypatch.setattr(afs, "channel_losses", stop)
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")
    basic, more = BasicOptions(method="realnet"), RareOptions(precision="fp32")
    with pytest.raises(UserError, match="seen"):
        train(DataOptions(root=product), basic, more, out=tmp_path / "out", source=("noise",))
    own = [frame for frame in frames if "/detect/" in frame.filename]
    calls = [frame.name for frame in own if frame.name != "<listcomp>"]
    assert calls == [
        "train", "train_detector", "build_realnet", "chosen_channels", "select_channels",
        "batch_losses",
    ]  # fmt: skip
    assert len({frame.filename for frame in own}) == 4


def test_help_comes_without_torch_and_shows_a_newcomer_few_options():
    code = "import sys, detect.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    shown = subprocess.run(
        [sys.executable, "-m", "detect", "train", "--help"],
        check=True, capture_output=True, text=True, timeout=300,
    ).stdout  # fmt: skip
    first, more = shown.split("─ more options ─")
    options = [line for line in first.splitlines() if line.startswith("│ --")]
    assert 10 <= len(options) <= 15
    assert "--patience" in more
    assert all(name in first for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_folder_of_a_version_that_knew_fewer_fields_continues(run, product, tmp_path, name):
    out = tmp_path / "out"
    assert run(*words(product, out, name)).code == 0
    config = json.loads((out / "config.json").read_text())
    del config["detector"]["backbone"]["mean"]  # a field with a default
    (out / "config.json").write_text(json.dumps(config))
    without_run(out)
    ended = run(*words(product, out, name))
    assert ended.code == 0, ended
    config["detector"]["backbone"]["mean"] = [0.1, 0.2, 0.3]
    (out / "config.json").write_text(json.dumps(config))
    line = run.refused(*words(product, out, name))
    assert "made with another configuration (detector.backbone.mean: " in line


def test_half_weights_are_half_as_large_and_calibrated_as_they_are(run, product, tmp_path):
    for name, more in (("full", ()), ("half", ("--half-weights",))):
        ended = run(*words(product, tmp_path / name, "csflow", *more))
        assert ended.code == 0, ended
        assert " MiB)" in ended.out
    full, half = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "half"))
    parameters = dict(load_detector(tmp_path / "full", CPU).detector.named_parameters())
    for name, tensor in full.items():
        want = tensor.half() if name in parameters else tensor
        assert torch.equal(half[name], want)
    trained = load_detector(tmp_path / "half", CPU)
    held = list((product / "train/good").iterdir())
    scores = [detect.load(tmp_path / "half").predict(str(path)).score for path in held]
    for score in trained.calibration.scores:
        assert min(abs(score - each) for each in scores) < 1e-5

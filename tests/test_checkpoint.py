import json
from dataclasses import replace

import pytest
import torch
from rights import ordinary_rights
from safetensors.torch import load_file, save_file

from detect.calibration import calibrate
from detect.checkpoint import METHODS, load_detector, save_detector
from detect.methods.realnet import RealNet, RealNetConfig
from synth.base.backbones import BackboneConfig, build_backbone
from synth.base.errors import UserError
from synth.base.files import write_json

CONFIG = RealNetConfig(
    image_size=(32, 32),
    backbone=BackboneConfig(name="resnet10t", layers=(1, 2), weights="random"),
    num_selected=(4, 4),
    num_max=3,
    num_mean=3,
    head_widths=(8, 8, 4, 4),
    num_steps=7,
)
CPU = torch.device("cpu")
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path):
    indices = [torch.tensor([1, 3, 5, 7]), torch.tensor([0, 2, 4, 6])]
    detector = RealNet(CONFIG, build_backbone(CONFIG.backbone), indices).eval()
    with torch.no_grad():
        for parameter in detector.head.parameters():
            parameter.add_(0.01)  # unlike any fresh model
    config = {key: value for key, value in CONFIG.to_json().items() if key != "num_steps"}
    about = {"method": "realnet", "dataset": "folder", "category": "widget", "detector": config}
    write_json(tmp_path / "config.json", about)
    save_detector(tmp_path, detector, 7, calibrate([0.1, 0.2, 0.3], 0.25))
    return tmp_path, detector


def test_loaded_detector_predicts_the_same(saved):
    folder, detector = saved
    trained = load_detector(folder, CPU)
    for one, other in zip(detector.predict(IMAGES), trained.detector.predict(IMAGES), strict=True):
        assert torch.equal(one, other)
    assert not trained.detector.training
    assert trained.image_size == (32, 32)
    assert trained.num_steps == 7
    assert trained.calibration == calibrate([0.1, 0.2, 0.3], 0.25)


def test_unfinished_training_is_told(saved):
    (saved[0] / "calibration.json").unlink()
    with pytest.raises(UserError, match="unfinished"):
        load_detector(saved[0], CPU)


def test_calibration_never_stands_beside_newer_weights(saved, monkeypatch):
    folder, detector = saved

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("detect.checkpoint.write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        save_detector(folder, detector, 9, calibrate([0.5], 0.5))
    with pytest.raises(UserError, match="unfinished"):
        load_detector(folder, CPU)


def break_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def drop_tensor(folder):
    state = load_file(folder / "model.safetensors")
    state.pop(sorted(state)[0])
    save_file(state, folder / "model.safetensors", {"num_steps": "7"})


def drop_steps(folder):
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")


def break_json(folder):
    (folder / "config.json").write_text("{")


def other_kind(folder):
    write_json(folder / "config.json", {"train": {"unet": {}}})


def spoil(name, *fields, value=None):
    """A fault: another value in a JSON file, or none at all."""

    def fault(folder):
        content = json.loads((folder / name).read_text())
        place = content
        for field in fields[:-1]:
            place = place[field]
        place.pop(fields[-1], None)
        if value is not None:
            place[fields[-1]] = value
        write_json(folder / name, content)

    return fault


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (break_weights, r"model\.safetensors: damaged"),
        (remove_weights, r"model\.safetensors: missing; run its `detect train`"),
        (drop_tensor, "do not fit"),
        (drop_steps, r"model\.safetensors: damaged"),
        (break_json, r"config\.json: damaged"),
        (other_kind, "not a detector"),
        (spoil("config.json", "method", value=["realnet"]), "not a detector"),
        (spoil("config.json", "category"), r"config\.json: damaged \(field 'category'\)"),
        (spoil("config.json", "dataset"), r"config\.json: damaged \(field 'dataset'\)"),
        (spoil("config.json", "detector"), r"config\.json: damaged \(field 'detector'\)"),
        (spoil("config.json", "detector", value=[]), r"config\.json: damaged"),
        (spoil("config.json", "detector", "num_max"), r"config\.json: .*num_max"),
        (spoil("config.json", "detector", "image_size", value=[32]), r"config\.json: damaged"),
        (spoil("config.json", "detector", "image_size", value=3), r"config\.json: damaged"),
        (spoil("config.json", "detector", "image_size", value=[32.0, 32.0]), r"\.json: damaged"),
        (spoil("config.json", "detector", "multipliers", value=[]), r"config\.json: damaged"),
        (spoil("config.json", "detector", "head_widths", value=[-8, 8, 4, 4]), r"\.json: damaged"),
        (spoil("config.json", "detector", "odd", value=1), r"config\.json: .*unknown fields"),
        (
            spoil("calibration.json", "scores", value=[]),
            r"calibration\.json: damaged \(scores: got none",
        ),
        (spoil("calibration.json", "scores", value=["x"]), r"calibration\.json: .*needs scores"),
        (spoil("calibration.json", "scores", value=[None]), r"calibration\.json: .*needs scores"),
        (spoil("calibration.json", "categories", value=[1]), r"calibration\.json: damaged"),
        (spoil("calibration.json", "categories", value={"a": 1}), r"calibration\.json: damaged"),
    ],
)
def test_damage_is_told_in_one_line(saved, fault, reason):
    fault(saved[0])
    with pytest.raises(UserError, match=reason) as caught:
        load_detector(saved[0], CPU)
    assert "\n" not in str(caught.value)


def test_weights_without_rights_are_not_called_damaged(saved):
    (saved[0] / "model.safetensors").chmod(0)
    words = r"model\.safetensors: cannot be read \(Permission denied\); check the file"
    with ordinary_rights(), pytest.raises(UserError, match=words):
        load_detector(saved[0], CPU)


def test_too_little_memory_is_no_damage(saved, monkeypatch):
    def full(config, state):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    recipe = replace(METHODS["realnet"].recipe(), restore=full)
    monkeypatch.setitem(METHODS, "realnet", replace(METHODS["realnet"], recipe=lambda: recipe))
    with pytest.raises(RuntimeError, match="can't allocate"):
        load_detector(saved[0], CPU)


def test_missing_folder_is_told(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*no such file"):
        load_detector(tmp_path / "nowhere", CPU)

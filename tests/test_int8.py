"""`detect export --int8`: what is quantised, and figures recomputed with onnxruntime alone."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from commands import Command
from detectors import CONFIG
from onnx import TensorProto, helper
from sklearn.metrics import roc_auc_score
from torch import nn

from detect.calibration import calibrate
from detect.checkpoint import load_detector
from detect.commands.train import RareOptions, train
from detect.detector import Detector
from detect.exporting import run as exporting
from detect.exporting.quantised import (
    load_products,
    quantise,
    rectified_convolutions,
    synthetic_test,
)
from detect.exporting.run import Exported, export_detector
from detect.methods import METHODS, csflow, patch_nn
from detect.methods.patch_nn import PatchNNConfig
from detect.methods.realnet.config import PRESETS
from detect.options import BasicOptions
from synth.base import cache
from synth.base.errors import UserError
from synth.data.options import DataOptions
from synth.images import read_image, write_png
from synth.pictures import digest

CPU = torch.device("cpu")
SIZE, NUM_TRAIN, NUM_HELD = (32, 32), 40, 4
NAMES = ("patch-nn-coreset", "realnet", "csflow")


def picture(number: int, dark: int = 60, bright: int = 180) -> np.ndarray:
    """Dark to the left, bright to the right, with noise: what is cut and pasted shows."""
    levels = np.where(np.arange(SIZE[1]) < SIZE[1] // 2, dark, bright)
    noise = np.random.default_rng(number).integers(0, 20, (*SIZE, 1))
    return np.repeat((levels[None, :, None] + noise).astype(np.uint8), 3, axis=2)


def write_normals(root: Path, count: int = NUM_TRAIN) -> Path:
    for number in range(count):
        write_png(root / f"train/good/{number:03d}.png", picture(number))
    return root


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_normals(tmp_path_factory.mktemp("data") / "widget")


@pytest.fixture(scope="module")
def models(product: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Tiny detectors by their methods, on a backbone with random weights."""
    backbone = replace(CONFIG.backbone, layers=(2, 3))
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "cache_folder", lambda: folder / "cache")
        realnet = replace(CONFIG, num_afs_batches=1, batch_size=2, num_steps=2)
        patch.setitem(PRESETS, "tiny", realnet)
        bank = PatchNNConfig(image_size=SIZE, backbone=backbone, bank_size=60, choice="coreset")
        patch.setitem(patch_nn.CORESET.presets, "tiny", bank)
        shape = {"image_size": SIZE, "hidden": 4, "num_steps": 2, "batch_size": 2}
        flow = replace(csflow.PRESETS["tiny"], kernels=(3,), **shape)
        flow = replace(flow, backbone=replace(backbone, layers=(2,)))
        patch.setitem(csflow.PRESETS, "tiny", flow)
        for name in NAMES:
            source = ("noise",) if METHODS[name].needs_anomalies else ()
            basic = BasicOptions(method=name, preset="tiny")
            more = RareOptions(precision="fp32")
            train(DataOptions(root=product), basic, more, out=folder / name, source=source)
        yield {name: folder / name for name in NAMES}


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def exported(
    name: str, models: dict[str, Path], product: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    trained = load_detector(models[name], CPU)
    out = tmp_path_factory.mktemp("exported")
    products = load_products(trained, product)
    with pytest.MonkeyPatch.context() as patch:
        # after two steps of training all scores are alike, and verdicts move with the least change
        patch.setattr(exporting, "MOST_EXCEPTIONS", 1.0)
        return export_detector(trained, out, "onnx", products=products)


def outside(path: Path, images: np.ndarray) -> np.ndarray:
    """Image scores of an ONNX file, with nothing of ours."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["score"], {"images": each[None]})[0] for each in images])


def held_images(root: Path, count: int = NUM_HELD) -> np.ndarray:
    """The tenth that training holds out, by a hash of the names."""
    files = sorted(
        (root / "train/good").iterdir(),
        key=lambda file: hashlib.sha256(f"0/{file.name}".encode()).digest(),
    )
    return np.stack([read_image(file) for file in sorted(files[:count])])


# The file


def test_convolutions_behind_a_relu_are_quantised(
    name: str, exported: Exported, models: dict[str, Path]
) -> None:
    graph = onnx.load(exported.path).graph
    made_by = {output: node for node in graph.node for output in node.output}
    weights = {
        made_by[node.input[1]].input[0]
        for node in graph.node
        if node.op_type == "Conv" and node.input[1] in made_by
    }
    assert all(each.startswith("detector.backbone.") for each in weights)
    backbone = load_detector(models[name], CPU).detector.get_submodule("backbone")
    convolutions = {
        f"detector.backbone.{each}.weight_quantized"
        for each, part in backbone.named_modules()
        if isinstance(part, nn.Conv2d)
    }
    first = "detector.backbone.net.model.conv1.0.weight_quantized"
    pooled = "detector.backbone.net.model.layer1.0.conv1.weight_quantized"
    assert {first, pooled} < convolutions
    shortcuts = {each for each in convolutions if ".downsample." in each}  # of averages
    assert weights == convolutions - shortcuts - {first, pooled}
    assert exported.int8 is not None
    scales = 3 if name == "csflow" else 1  # of the image: each runs through the backbone
    assert exported.int8.num_quantised == scales * len(weights)
    kinds = {each.name: each.data_type for each in graph.initializer}
    assert {kinds[each] for each in weights} == {TensorProto.INT8}
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) >= len(weights)
    others = {node.op_type for node in graph.node if node.op_type.startswith("Q")}
    assert others == {"QuantizeLinear"}


def test_figures_are_those_of_the_file(
    name: str, exported: Exported, models: dict[str, Path], product: Path
) -> None:
    trained = load_detector(models[name], CPU)
    (normals,) = load_products(trained, product)
    test = synthetic_test(normals)
    held = held_images(product)
    assert {each.tobytes() for each in held} == {each.tobytes() for each in test.images[:NUM_HELD]}
    assert (test.images[:NUM_HELD] != test.images[NUM_HELD:]).any((1, 2, 3)).all()

    batch = torch.from_numpy(test.images).permute(0, 3, 1, 2) / 255
    before = trained.detector.predict(batch).image.numpy()
    after = outside(exported.path, test.images)
    judged = exported.int8
    assert judged is not None
    assert judged.num_images == len(after) == 2 * NUM_HELD
    tolerance = 1e-4 * float(np.abs(before).max())
    assert judged.largest == pytest.approx(np.abs(after - before).max(), abs=tolerance)
    assert judged.mean == pytest.approx(np.abs(after - before).mean(), abs=tolerance)
    assert judged.largest > 3 * tolerance  # 8 bits do show
    rate = trained.calibration.false_reject_rate
    verdicts = [
        each > calibrate(each[:NUM_HELD].tolist(), rate).threshold for each in (before, after)
    ]
    assert judged.moved == (verdicts[0] != verdicts[1]).sum()
    assert judged.auroc == pytest.approx(roc_auc_score(test.labels, after))
    assert judged.float_auroc == pytest.approx(roc_auc_score(test.labels, before))
    assert min(judged.milliseconds, judged.float_milliseconds) > 0


def test_the_threshold_is_of_its_own_scores(
    name: str, exported: Exported, models: dict[str, Path], product: Path
) -> None:
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["siaforge"])
    scores = sorted(outside(exported.path, held_images(product)).tolist())
    np.testing.assert_allclose(about["scores"], scores, rtol=1e-5)
    assert about["threshold"] == about["scores"][-1]  # of four images the largest
    assert about["scores"] != list(load_detector(models[name], CPU).calibration.scores)
    assert exported.int8 is not None
    assert about["int8"] == f"{exported.int8.num_quantised} convolutions of the backbone"
    assert exported.size_bytes == exported.path.stat().st_size < exported.int8.float_bytes


@pytest.mark.parametrize("name", ["patch-nn-coreset"], indirect=True)
def test_a_second_run_makes_the_same_file(
    exported: Exported, models: dict[str, Path], product: Path, tmp_path: Path
) -> None:
    trained = load_detector(models["patch-nn-coreset"], CPU)
    made = export_detector(trained, tmp_path, "onnx", products=load_products(trained, product))
    assert made.path.read_bytes() == exported.path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["detector.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_openvino_computes_the_same_integers(
    name: str, models: dict[str, Path], product: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(exporting, "MOST_EXCEPTIONS", 1.0)
    trained = load_detector(models[name], CPU)
    products = load_products(trained, product)
    made = export_detector(trained, tmp_path / "d.xml", "openvino", products=products)
    other = export_detector(trained, tmp_path / "d.onnx", "onnx", products=products)
    images = held_images(product)
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(made.path, "CPU", hint)
    scores = np.concatenate([compiled(each[None])["score"] for each in images])
    want = outside(other.path, images)
    assert made.int8 is not None
    assert other.int8 is not None
    assert np.abs(scores - want).max() < other.int8.largest  # less than what 8 bits change
    assert made.int8.num_quantised == other.int8.num_quantised
    assert sorted(file.name for file in tmp_path.iterdir()) == ["d.bin", "d.onnx", "d.xml"]


# What is quantised


def node(kind: str, given: str, made: str, **attributes: int) -> onnx.NodeProto:
    inputs = [given, f"net.{made}.weight"] if kind == "Conv" else [given]
    return helper.make_node(kind, inputs, [made], name=made, **attributes)


def test_convolutions_that_read_a_relu_and_mix_channels() -> None:
    nodes = [
        node("Conv", "images", "first"),
        node("Relu", "first", "a"),
        node("Conv", "a", "behind_relu"),
        node("Clip", "behind_relu", "b"),
        node("Conv", "b", "depthwise", group=8),
        node("Conv", "b", "behind_relu6", group=1),
        node("Conv", "behind_relu6", "behind_convolution"),
        node("MaxPool", "a", "c"),
        node("Conv", "c", "behind_pool"),
    ]
    found = rectified_convolutions(helper.make_graph(nodes, "g", [], []), ("net.",))
    assert found == ["behind_relu", "behind_relu6"]
    assert rectified_convolutions(helper.make_graph(nodes, "g", [], []), ("other.",)) == []
    assert rectified_convolutions(helper.make_graph(nodes, "g", [], []), ()) == []


def test_without_such_a_backbone_it_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph([node("Relu", "images", "a")], "g", [], [])
    onnx.save(helper.make_model(graph), tmp_path / "a.onnx")
    with pytest.raises(UserError, match="no frozen backbone with convolutions behind a ReLU"):
        quantise(tmp_path / "a.onnx", tmp_path / "b.onnx", [picture(0)], Detector())


# The command


@pytest.fixture
def command(models: dict[str, Path], product: Path, tmp_path: Path, monkeypatch, capfd):
    """`detect export --int8` of the coreset to tmp_path/d.onnx, with further words."""
    model = models["patch-nn-coreset"]

    def words(*more: object, root: Path = product, format_name: str = "onnx"):
        out = tmp_path / f"out/d.{format_name}"
        given = ("--model", model, "--out", out, "--format", format_name, "--int8")
        return ("detect", "export", *given, "--root", root, *more)

    return Command(monkeypatch, capfd), words


def test_the_command_says_what_8_bits_change(command, tmp_path: Path) -> None:
    run, words = command
    ended = run(*words())
    assert ended.code == 0, ended
    lines = ended.out.splitlines()
    assert len(lines) == 9
    assert lines[5].startswith("int8: ")
    assert "judged on 8 images" in lines[5]
    assert "0 get another verdict, by thresholds of their own" in lines[6]
    assert lines[7].endswith(" MB")
    assert lines[8] == f"model: {tmp_path / 'out/d.onnx'}"


def test_ranges_that_saturate_are_refused(command, product: Path, tmp_path: Path) -> None:
    """The images to train on have become grey since, nearly 0 for the backbone: all is cut off."""
    run, words = command
    root = shutil.copytree(product, tmp_path / "dark" / product.name)
    held = {image.tobytes() for image in held_images(product)}
    for number, file in enumerate(sorted((root / "train/good").iterdir())):
        if read_image(file).tobytes() not in held:
            write_png(file, picture(number, 0, 0) // 8 + 123)
    line = run.refused(*words(root=root))
    assert "not written, 8-bit integers move" in line
    assert "of 8 verdicts on held-out normal images" in line
    assert line.endswith("leave --int8 out")
    assert list((tmp_path / "out").iterdir()) == []


def test_other_held_out_images_are_refused(command, product: Path, tmp_path: Path) -> None:
    run, words = command
    root = shutil.copytree(product, tmp_path / product.name)
    for number, file in enumerate(sorted((root / "train/good").iterdir())):
        write_png(file, picture(100 + number))
    line = run.refused(*words(root=root))
    assert "the held-out images of widget are not those" in line
    assert not (tmp_path / "out").exists()


def test_what_does_not_go_together_is_a_line(command, models, product: Path, tmp_path) -> None:
    run, words = command
    assert "give onnx or openvino" in run.refused(*words(format_name="pt2"))
    fixed = ("detect", "export", "--model", models["realnet"], "--out", tmp_path / "d.onnx")
    fixed = (*fixed, "--format", "onnx")
    assert "--root: not used without --int8" in run.refused(*fixed, "--root", product)
    assert "root: this layout needs a folder" in run.refused(*fixed, "--int8")
    assert "no such folder" in run.refused(*fixed, "--int8", "--root", tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_too_few_images_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    few = write_normals(tmp_path / "widget", 17)
    trained = load_detector(models["patch-nn-coreset"], CPU)
    data = {"held_out_digest": digest(held_images(few, 2))}
    with pytest.raises(UserError, match="got 15 normal images to calibrate on, needs 16"):
        load_products(trained._replace(config={**trained.config, "data": data}), few)

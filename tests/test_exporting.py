"""Exported detectors: read back by the runtimes they are for, and compared with torch."""

import contextlib
import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from commands import Command
from torch import nn

from detect.calibration import calibrate
from detect.checkpoint import TrainedDetector, load_detector, save_detector
from detect.detector import Detector, Scores
from detect.exporting import formats, graph
from detect.exporting import run as exporting
from detect.exporting.formats import FORMATS
from detect.exporting.graph import resized
from detect.methods.realnet import RealNet, RealNetConfig
from synth.base.backbones import BackboneConfig, build_backbone
from synth.base.errors import UserError
from synth.base.files import write_json
from synth.images import resize, write_png

CONFIG = RealNetConfig(
    image_size=(32, 40),
    backbone=BackboneConfig(name="resnet10t", layers=(1, 2), weights="random"),
    num_selected=(8, 12),
    multipliers=(1, 2),
    num_res_blocks=1,
    num_max=5,
    num_mean=5,
    head_widths=(8, 8, 4, 4),
)
CONSUMER = Path(__file__).parent.parent / "scripts/predict_onnx.py"
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector's folder; its weights are as if trained: no output at zero, maps that vary."""
    backbone = build_backbone(CONFIG.backbone)
    network = RealNet(CONFIG, backbone, [torch.arange(m) for m in CONFIG.num_selected])
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("reconstruction") and not parameter.any():
                nn.init.normal_(parameter, std=0.05, generator=rng)
        network.get_parameter("head.classify.2.weight").mul_(20)
    network.rrs.norm.running_var.copy_(torch.linspace(0.1, 3, 20))
    folder = tmp_path_factory.mktemp("model")
    about = {"method": "realnet", "dataset": "folder", "category": "nut", "data": {}}
    write_json(folder / "config.json", {**about, "detector": CONFIG.to_json()})
    save_detector(folder, network, 7, calibrate([0.2, 0.3, 0.25], 0.5))
    return folder


@pytest.fixture(scope="module")
def trained(model: Path) -> TrainedDetector:
    return load_detector(model, torch.device("cpu"))


@pytest.fixture(scope="module", autouse=True)
def recorded_once() -> Iterator[None]:
    """Recording and converting take seconds; the tests of this file share one graph."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "record", Once(graph.record))
        patch.setattr(torch.onnx, "export", Once(torch.onnx.export))
        yield


class Once:
    """A function that is called at its first call only."""

    def __init__(self, function):
        self.function, self.result = function, None

    def __call__(self, *args, **kwargs):
        if self.result is None:
            self.result = self.function(*args, **kwargs)
        return self.result


@pytest.fixture(
    scope="module",
    params=["onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "pt2"))],
)
def exported(
    request: pytest.FixtureRequest,
    trained: TrainedDetector,
    tmp_path_factory: pytest.TempPathFactory,
) -> exporting.Exported:
    folder = tmp_path_factory.mktemp("exported")
    return exporting.export_detector(trained, folder, request.param)


def images(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)


def outside(path: Path, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run a file as its users do, with nothing of ours."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        score, anomaly_map = session.run(None, {"images": batch})
    elif path.suffix == ".xml":
        hint = {"INFERENCE_PRECISION_HINT": "f32"}
        answer = openvino.Core().compile_model(path, "CPU", hint)(batch)
        score, anomaly_map = answer["score"], answer["map"]
    else:
        score, anomaly_map = torch.export.load(path).module()(torch.from_numpy(batch))
        score, anomaly_map = score.detach().numpy(), anomaly_map.detach().numpy()
    return np.asarray(score), np.asarray(anomaly_map)


# The files


def test_every_format_scores_as_torch(
    exported: exporting.Exported, trained: TrainedDetector
) -> None:
    run = FORMATS[next(f for f, s in SUFFIXES.items() if s == exported.path.suffix)].read(
        exported.path
    )
    for count, size in ((1, (32, 40)), (3, (32, 40)), (1, (64, 80)), (3, (50, 45)), (2, (20, 30))):
        batch = images(count, size)
        native = np.stack([resize(image, (32, 40)) for image in batch])
        want = trained.detector.predict(torch.from_numpy(native).permute(0, 3, 1, 2) / 255)
        tolerance = 0.03 if size == (20, 30) else 2e-5  # enlarging differs by levels
        score, anomaly_map = run(batch)
        assert (score.dtype, anomaly_map.dtype) == (np.float32, np.float32)
        assert (score.shape, anomaly_map.shape) == ((count,), (count, 32, 40))
        assert np.abs(score - want.image.numpy()).max() < tolerance
        assert np.abs(anomaly_map - want.maps.numpy()).max() < tolerance
    assert want.maps.std() > 0.02
    score, anomaly_map = outside(exported.path, batch)
    np.testing.assert_allclose(score, run(batch)[0], atol=1e-6)
    np.testing.assert_allclose(anomaly_map, run(batch)[1], atol=1e-6)


def test_the_report_is_of_the_file(exported: exporting.Exported) -> None:
    assert exported.num_checked == 16
    assert 0 <= max(exported.parity[:2]) < 1e-4
    assert 0 < max(exported.resizing[:2]) < 0.1
    files = list(exported.path.parent.iterdir())
    assert exported.size_bytes == sum(file.stat().st_size for file in files)
    names = {".xml": ["detector.bin", "detector.xml"]}
    assert sorted(f.name for f in files) == names.get(
        exported.path.suffix, [f"detector{exported.path.suffix}"]
    )
    assert min(exported.milliseconds, exported.torch_milliseconds) > 0


def described(path: Path) -> dict[str, object]:
    """What the file says of itself, read with its own runtime alone."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return json.loads(session.get_modelmeta().custom_metadata_map["siaforge"])
    if path.suffix == ".xml":
        model = openvino.Core().read_model(path)
        return json.loads(model.get_rt_info(["siaforge"]).astype(str))
    files = {"siaforge.json": ""}
    torch.export.load(path, extra_files=files)
    return json.loads(files["siaforge.json"])


def test_the_description_travels_inside(exported: exporting.Exported) -> None:
    about = described(exported.path)
    assert about["threshold"] == 0.25
    assert about["scores"] == [0.2, 0.25, 0.3]
    assert about["false_reject_rate"] == 0.5
    assert (about["category"], about["image_size"]) == ("nut", [32, 40])
    assert str(about["input"]).startswith("uint8 [N, H, W, 3]")
    assert "[N, 32, 40]" in str(about["outputs"])
    assert str(about["siaforge"]).count(".") >= 1


def test_a_detector_of_several_categories_takes_all_its_thresholds_along(
    trained: TrainedDetector,
) -> None:
    own = {"nut": calibrate([0.1, 0.2], 0.5), "bolt": calibrate([0.7, 0.8, 0.9], 0.5)}
    about = exporting.about(trained._replace(by_category=own))
    assert about["threshold"] == 0.25
    assert {name: row["threshold"] for name, row in about["categories"].items()} == {
        name: each.threshold for name, each in own.items()
    }
    assert "categories" not in exporting.about(trained)


# Resizing inside the graph


@pytest.mark.parametrize(
    ("size", "levels", "share"),
    [
        ((64, 96), 0, 0),  # the size itself
        ((128, 192), 0, 0),  # half
        ((256, 384), 0, 0),  # a quarter
        ((301, 407), 1, 0.001),
        ((64, 500), 1, 0.001),
        ((200, 50), 1, 0.001),
        ((50, 300), 1, 0.001),
        ((30, 41), 0, 0),  # enlarged: bilinear in 8 bits
        ((63, 95), 0, 0),
        ((64, 1), 0, 0),
        ((3, 96), 0, 0),
        ((1, 1), 0, 0),
    ],
)
def test_resizing_equals_opencv(size: tuple[int, int], levels: int, share: float) -> None:
    image = images(1, size)[0]
    got = resized(torch.from_numpy(image)[None], (64, 96))[0].permute(1, 2, 0).numpy()
    difference = np.abs(got - resize(image, (64, 96)).astype(np.float32))
    assert difference.max() <= levels
    assert (difference > 0).mean() <= share


def test_enlarging_equals_opencv_at_any_size() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        size = tuple(int(side) for side in rng.integers(1, 200, 2))
        old = tuple(int(rng.integers(1, side + 1)) for side in size)
        image = rng.integers(0, 256, (*old, 3), dtype=np.uint8)
        got = resized(torch.from_numpy(image)[None], size)[0].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(got, resize(image, size), err_msg=f"{old} to {size}")


def test_the_check_knows_larger_smaller_and_mixed_sizes() -> None:
    sizes = {image.shape[:2] for image in exporting.made_images((64, 96))}
    changes = {(np.sign(h - 64), np.sign(w - 96)) for h, w in sizes}
    assert changes == {(0, 0), (1, 1), (-1, -1), (-1, 1), (1, -1)}


# Refusals


class Brightness(Detector):
    """The mean over the channels."""

    def forward(self, images: torch.Tensor) -> Scores:
        maps = images.mean(dim=1)
        return Scores(maps.mean(dim=(1, 2)), maps)


def test_a_model_that_resizes_otherwise_is_refused(
    trained: TrainedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Right at the detector's own height alone."""
        levels = resized(images, size)
        return torch.where(torch.arange(images.shape[1])[-1] == size[0] - 1, levels, 255 - levels)

    monkeypatch.setattr("detect.exporting.graph.resized", other)
    monkeypatch.setattr(exporting, "record", graph.record)  # not the one that is shared
    bright = trained._replace(detector=Brightness())
    with pytest.raises(UserError, match="the exported model differs from torch by"):
        exporting.export_detector(bright, tmp_path / "d.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_a_model_that_disagrees_with_torch_is_not_left_behind(
    trained: TrainedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "made_images", lambda size: list(images(2, size)))
    exporting.export_detector(trained, tmp_path / "d.pt2", "pt2")
    good = (tmp_path / "d.pt2").read_bytes()

    other = copy.deepcopy(trained.detector)  # the recorded graph is the first one's
    other.get_parameter("head.classify.2.bias").data[0] += 0.5
    with pytest.raises(UserError, match=r"differs from torch by 0\.\d+ in the score.*is 0.001"):
        exporting.export_detector(trained._replace(detector=other), tmp_path / "d.pt2", "pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["d.pt2"]
    assert (tmp_path / "d.pt2").read_bytes() == good


class Unexportable(Detector):
    """Its graph depends on the values of pixels."""

    def forward(self, images: torch.Tensor) -> Scores:
        maps = images.mean(dim=1)
        return Scores(maps.amax(dim=(1, 2)) if images.max() > 0.5 else maps.sum(dim=(1, 2)), maps)


def test_a_network_that_the_exporter_refuses_is_one_line(
    trained: TrainedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "record", graph.record)
    with pytest.raises(UserError) as caught:
        exporting.export_detector(trained._replace(detector=Unexportable()), tmp_path, "onnx")
    line = str(caught.value)
    assert line.startswith("--format onnx: a detector with resnet10t cannot be written in it (")
    assert line.endswith("; try --format openvino or pt2")
    assert "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_not_the_exporters_refusal(
    trained: TrainedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(exporting, "record", full)
    with pytest.raises(RuntimeError, match="can't allocate"):
        exporting.export_detector(trained, tmp_path, "onnx")


@pytest.mark.parametrize("numbers", [(np.nan, 0.0), (0.0, np.nan), (2e-3, 0.0), (0.0, np.inf)])
def test_what_is_no_number_is_no_parity(numbers: tuple[float, float]) -> None:
    good = exporting.Difference(1e-3, 0, 1.0, 1.0)
    parity = exporting.largest([exporting.Difference(*numbers, 1.0, 1.0), good])
    made = exporting.Exported(Path(), 0, 1, parity, good, 1, 0, 1.0, 1.0)
    with pytest.raises(UserError, match="not written"):
        exporting.require_parity(Path("x.onnx"), made)
    exporting.require_parity(Path("x.onnx"), made._replace(parity=good, beyond=0))


@pytest.mark.parametrize(
    ("beyond", "moved", "score", "written"),
    [
        (1, 0, 0.2, True),
        (2, 0, 0.2, False),
        (1, 2, 0.2, False),
        (0, 2, 1e-5, False),
        (1, 1, np.nan, False),
    ],
)
def test_near_ties_are_exceptions(beyond: int, moved: int, score: float, written: bool) -> None:
    far, good = exporting.Difference(score, score, 1.0, 1.0), exporting.Difference(0, 0, 1.0, 1.0)
    made = exporting.Exported(Path(), 0, 20, far, good, beyond, moved, 1.0, 1.0)
    with contextlib.nullcontext() if written else pytest.raises(UserError, match="of 20 images"):
        exporting.require_parity(Path("x.onnx"), made)


def test_verdicts_that_move_are_counted(trained: TrainedDetector) -> None:
    samples = list(images(6, (32, 40)))
    native = torch.from_numpy(np.stack(samples)).permute(0, 3, 1, 2) / 255
    scores, maps = (each.numpy() for each in trained.detector.predict(native))
    threshold = np.sort(scores)[3]
    own = trained._replace(calibration=calibrate([float(threshold)], 0.5))
    rows = {image.tobytes(): n for n, image in enumerate(samples)}

    def shifted(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = [rows[image.tobytes()] for image in batch]
        return scores[order] + np.float32(0.01), maps[order]

    made = exporting.check(shifted, own, samples)
    crossing = (scores <= threshold) & (scores + np.float32(0.01) > threshold)
    assert (made.beyond, made.moved) == (6, crossing.sum())
    assert made.moved


@pytest.mark.parametrize(
    ("score", "largest", "is_allowed"),
    [(0.9, 1000, True), (1.1, 1000, False), (1.1e-3, 1, False), (9e-5, 0.01, True)],
)
def test_parity_is_relative_to_the_size_of_the_scores(
    score: float, largest: float, is_allowed: bool
) -> None:
    got, want = np.float32([largest - score]), np.float32([largest])
    found = exporting.difference((got, got), (want, want))
    assert found.is_allowed == is_allowed


@pytest.mark.parametrize(
    ("format_name", "package"),
    [("onnx", "onnx"), ("onnx", "onnxruntime"), ("openvino", "openvino"), ("onnx", "onnxscript")],
)
def test_a_missing_package_is_named_with_its_extra(
    format_name: str, package: str, model: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    run = Command(monkeypatch, capsys)
    words = ("--model", model, "--out", tmp_path / "out", "--format", format_name)
    line = run.refused("detect", "export", *words)
    assert f"the package {package} is missing; run `pip install siaforge[export]`" in line
    assert not (tmp_path / "out").exists()


def test_a_suffix_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.xml"):
        exporting.file_path(tmp_path / "d.onnx", FORMATS["openvino"])
    assert exporting.file_path(tmp_path, FORMATS["pt2"]) == tmp_path / "detector.pt2"
    assert exporting.file_path(tmp_path / "new", FORMATS["onnx"]).name == "detector.onnx"


def test_parts_of_a_model_are_never_of_two(tmp_path: Path) -> None:
    staged, old = tmp_path / "staged", tmp_path / "old"
    for folder, text in ((staged, "new"), (old, "old")):
        folder.mkdir()
        (folder / "d.onnx").write_text(text)
    (old / "d.onnx.data").write_text("weights of the old one")
    exporting.take_place(FORMATS["onnx"], staged / "d.onnx", old / "d.onnx")
    assert [(f.name, f.read_text()) for f in old.iterdir()] == [("d.onnx", "new")]


# Large models, silence


def test_large_weights_lie_in_a_second_file(
    trained: TrainedDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "ONE_FILE_BYTES", 1000)
    made = exporting.export_detector(trained, tmp_path / "d.onnx", "onnx")
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["d.onnx", "d.onnx.data"]
    assert (tmp_path / "d.onnx").stat().st_size < (tmp_path / "d.onnx.data").stat().st_size
    assert max(made.parity[:2]) < 1e-4
    score, _ = outside(made.path, images(2, (32, 40)))
    assert score.shape == (2,)


@pytest.mark.slow
def test_openvino_tells_nobody() -> None:
    """In a fresh process: its reports go through a package that is never imported."""
    code = (
        "import sys; from detect.exporting.formats import runtime; runtime('openvino');"
        "import openvino.tools.ovc.telemetry_utils as t;"
        "assert t.tm.__name__ == 'openvino.tools.ovc.telemetry_stub', t.tm;"
        "assert not [m for m in sys.modules if m.startswith('openvino_telemetry.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


# The command and the consumer


@pytest.fixture
def onnx_file(exported: exporting.Exported) -> Path:
    """The exported ONNX file."""
    if exported.path.suffix != ".onnx":
        pytest.skip("another format")
    return exported.path


@pytest.mark.parametrize("format_name", ["onnx", pytest.param("pt2", marks=pytest.mark.slow)])
def test_the_command_says_what_it_made(
    format_name: str, model: Path, tmp_path: Path, monkeypatch, capfd
) -> None:
    for number in range(3):
        size = (32, 40) if number else (90, 70)
        write_png(tmp_path / f"images/{number}.png", images(1, size, number)[0])
    out = tmp_path / f"d.{format_name}"
    words = ("--model", model, "--out", out, "--images", tmp_path / "images")
    ended = Command(monkeypatch, capfd)("detect", "export", *words, "--format", format_name)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert len(lines) == 6
    assert lines[3] == "of 3 images 0 differ by more than 1e-3, 0 get another verdict"
    assert lines[0].startswith(f"{format_name}, ")
    assert "over 3 images" in lines[1]
    assert lines[-1] == f"model: {out}"


def test_few_calibration_images_are_told(model: Path, tmp_path: Path, monkeypatch, capfd) -> None:
    few = shutil.copytree(model, tmp_path / "few")
    write_json(few / "calibration.json", calibrate([0.2, 0.3, 0.25], 0.05).to_json())
    words = ("--model", few, "--out", tmp_path / "d.onnx", "--format", "onnx")
    ended = Command(monkeypatch, capfd)("detect", "export", *words)
    assert ended.code == 0
    assert ended.err.startswith("warning: A false-reject rate of 0.05 needs 19 held-out normal")


def test_the_consumer_needs_onnxruntime_and_numpy_only(onnx_file: Path, tmp_path: Path) -> None:
    path = onnx_file
    image = images(1, (50, 60))[0]
    image[0, 0] = ord(" ")  # the header ends with a space, too
    np.save(tmp_path / "a.npy", image)
    cv2.imwrite(str(tmp_path / "b.ppm"), image[:, :, ::-1])
    command = [sys.executable, "-X", "importtime", CONSUMER, path, tmp_path / "a.npy"]
    ended = subprocess.run(
        [str(word) for word in [*command, tmp_path / "b.ppm"]],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    loaded = {line.rsplit("|", 1)[-1].strip() for line in ended.stderr.splitlines()}
    assert {"onnxruntime", "numpy"} <= loaded
    assert not loaded & {"torch", "cv2", "PIL", "detect", "synth", "onnx", "scipy"}
    score = float(outside(path, image[None])[0][0])
    verdict = "anomalous" if score > 0.25 else "normal"
    p_value = (1 + sum(s >= score for s in (0.2, 0.25, 0.3))) / 4
    for name, line in zip(("a.npy", "b.ppm"), ended.stdout.splitlines(), strict=True):
        assert line == (
            f"{tmp_path / name}: {verdict}, score {score:.4f}, threshold 0.2500, p {p_value:.3g}"
        )


def consume(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CONSUMER, *words]
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=300
    )


def test_the_consumer_takes_the_threshold_of_a_category(onnx_file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", images(1, (50, 60))[0])
    score = float(outside(onnx_file, np.load(tmp_path / "a.npy")[None])[0][0])
    file = onnx.load(onnx_file)
    (entry,) = (entry for entry in file.metadata_props if entry.key == "siaforge")
    own = {"nut": calibrate([score - 0.1], 0.5), "bolt": calibrate([score, score + 0.1], 0.5)}
    about = {**json.loads(entry.value), "categories": {k: v.to_json() for k, v in own.items()}}
    entry.value = json.dumps(about)
    onnx.save(file, tmp_path / "d.onnx")
    words = (tmp_path / "d.onnx", tmp_path / "a.npy", "--category")
    for name, verdict, p_value in (("nut", "anomalous", "0.5"), ("bolt", "normal", "1")):
        ended = consume(*words, name)
        assert ended.stdout.split(": ")[1].startswith(f"{verdict}, score {score:.4f}"), ended
        assert ended.stdout.endswith(f"threshold {own[name].threshold:.4f}, p {p_value}\n")
    ended = consume(*words, "screw")
    assert ended.returncode == 2
    assert ended.stderr.endswith("error: --category: the model has nut, bolt\n")


def test_the_consumer_calls_what_is_no_number_anomalous(tmp_path: Path) -> None:
    kind = onnx.TensorProto.FLOAT
    outputs = {"score": [None], "map": [None, None, None]}
    nodes = [  # 0 / 0 for every image
        onnx.helper.make_node("Cast", ["images"], ["x"], to=kind),
        onnx.helper.make_node("Sub", ["x", "x"], ["zeros"]),
        onnx.helper.make_node("ReduceSum", ["zeros", "last"], ["none"], keepdims=0),
        onnx.helper.make_node("Div", ["none", "none"], ["map"]),
        onnx.helper.make_node("ReduceSum", ["map", "all"], ["score"], keepdims=0),
    ]
    values = {"last": [3], "all": [1, 2]}
    graph = onnx.helper.make_graph(
        nodes,
        "nan",
        [
            onnx.helper.make_tensor_value_info(
                "images", onnx.TensorProto.UINT8, [None, None, None, 3]
            )
        ],
        [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(np.array(v, np.int64), k) for k, v in values.items()],
    )
    file = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    file.ir_version = 9
    onnx.helper.set_model_props(file, {"siaforge": json.dumps(calibrate([1.0], 0.5).to_json())})
    onnx.save(file, tmp_path / "d.onnx")
    np.save(tmp_path / "a.npy", images(1, (9, 9))[0])
    ended = consume(tmp_path / "d.onnx", tmp_path / "a.npy")
    assert ": anomalous, score nan" in ended.stdout, ended


def test_the_consumer_says_in_a_line_what_it_lacks(onnx_file: Path, tmp_path: Path) -> None:
    assert consume().stderr.startswith("usage: predict_onnx.py")
    (tmp_path / "cut.ppm").write_bytes(b"P6 9 9 255 " + bytes(9))
    np.save(tmp_path / "float.npy", np.zeros((9, 9, 3)))
    for name in ("none.ppm", "cut.ppm", "float.npy"):
        ended = consume(onnx_file, tmp_path / name)
        assert (ended.returncode, ended.stdout) == (2, ""), name
        assert str(tmp_path / name) in ended.stderr
        assert ended.stderr.count("\n") == 1, ended.stderr


def test_metadata_is_json_for_anyone(onnx_file: Path) -> None:
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["siaforge"])
    assert about["threshold"] == 0.25
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == ("images", ["N", "H", "W", 3], "tensor(uint8)")
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("score", ["N"]),
        ("map", ["N", 32, 40]),
    ]

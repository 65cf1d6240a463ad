"""CS-Flow and ValidFlow as detectors: features, their cache, scores, and what they refuse."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from products import normal_image

from detect.calibration import calibrate
from detect.checkpoint import TrainedDetector
from detect.data import feature_cache
from detect.data.feature_cache import feature_file, stored_cache
from detect.detector import Batch
from detect.exporting.run import export_detector
from detect.images import to_chw, to_unit
from detect.methods import csflow, validflow
from detect.methods.flow import negative_log_likelihood
from detect.methods.flow_detector import FlowConfig, FlowDetector
from detect.packing import packed
from synth.base import cache
from synth.base.backbones import BackboneConfig, build_backbone
from synth.base.errors import DataWarning, UserError

CPU = torch.device("cpu")
BACKBONE = BackboneConfig(name="resnet10t", layers=(2,), weights="random")
SHAPE = {"image_size": (64, 32), "backbone": BACKBONE, "hidden": 6}
CONFIGS: dict[str, FlowConfig] = {
    "csflow": replace(csflow.PRESETS["compact"], kernels=(3, 5), **SHAPE),
    "validflow": replace(validflow.PRESETS["compact"], num_modules=1, **SHAPE),
}
kinds = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")


def detector_of(config: FlowConfig) -> FlowDetector:
    """A detector that does something: its couplings would start as the identity."""
    detector = FlowDetector(config, build_backbone(config.backbone))
    detector.flow.initialise(detector.features(images(4)))
    generator = torch.Generator().manual_seed(1)
    for parameter in detector.flow.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return detector.eval()


def pictures(count: int) -> list[np.ndarray]:
    return [normal_image(n, (64, 32)) for n in range(count)]


def images(count: int) -> torch.Tensor:
    return to_unit(torch.stack([to_chw(picture) for picture in pictures(count)]))


# Scores


@kinds
def test_scores_are_those_of_the_latents(config):
    detector, x = detector_of(config), images(3)
    small = [x, x[..., ::2, ::2], x[..., ::4, ::4]]
    with torch.no_grad():
        features = [detector.backbone(each)[0] for each in small]
        z = detector.flow(features).maps
    assert [tuple(each.shape[-2:]) for each in z] == [(8, 4), (4, 2), (2, 1)]
    flat = torch.cat([each.flatten(1) for each in z], dim=1)
    scores = detector.predict(x)
    torch.testing.assert_close(scores.image, flat.square().mean(1) / 2)
    cells = [each.square().mean(1, keepdim=True) / 2 for each in z]
    grown = torch.stack([F.interpolate(c, (64, 32), mode="bilinear") for c in cells])[:, :, 0]
    torch.testing.assert_close(scores.maps, grown[0])
    every = [replace(config, map=kind) for kind in ("sum", "product")]
    maps = [FlowDetector(each, detector.backbone) for each in every]
    for other in maps:
        other.load_state_dict(detector.state_dict())
    torch.testing.assert_close(maps[0].predict(x).maps, grown.sum(0) / 3)
    torch.testing.assert_close(maps[1].predict(x).maps, grown[0] * grown[1] * grown[2])


@kinds
def test_scores_depend_on_neither_batch_nor_object(config):
    detector, x = detector_of(config), images(5)
    scores = detector.predict(x)
    fresh = FlowDetector.from_state(config, detector.state_dict()).eval()
    torch.testing.assert_close(fresh.predict(x), scores, rtol=0, atol=0)
    fast = packed(detector)
    for n in range(5):
        alone = fast.predict(x[n : n + 1])
        torch.testing.assert_close(alone.image[0], scores.image[n], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.maps[0], scores.maps[n], rtol=1e-4, atol=1e-5)


@kinds
def test_loss_of_a_batch_is_the_mean_of_single_losses(config):
    detector, x = detector_of(config), images(4)
    generator = torch.Generator()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return detector.losses(Batch(x, x, torch.zeros(len(x), 64, 32)), generator)["nll"]

    single = torch.stack([loss(x[n : n + 1]) for n in range(4)])
    torch.testing.assert_close(loss(x), single.mean(), rtol=1e-5, atol=1e-5)
    features = detector.features(x)
    torch.testing.assert_close(loss(x), negative_log_likelihood(detector.flow(features)).mean())


@kinds
def test_an_exported_flow_scores_as_torch(config, tmp_path):
    pytest.importorskip("onnxruntime")
    about = {"method": "csflow", "dataset": "folder", "category": "widget"}
    about["detector"] = config.to_json()
    detector = detector_of(config)
    trained = TrainedDetector(detector, about, 1, (64, 32), calibrate([1.0], 0.5))
    made = export_detector(trained, tmp_path, "onnx")
    assert made.parity.is_allowed
    assert made.parity.score < 1e-4 * made.parity.largest_score
    assert made.parity.largest_score > 0.1


# Features


def test_features_are_computed_once_for_all_trainings():
    calls = []

    def compute(x):
        calls.append(len(x))
        return [F.avg_pool2d(x, 8), F.avg_pool2d(x, 16)]

    shown, about = pictures(21), {"backbone": "a"}
    told = []
    one = stored_cache(shown, compute, CPU, about, lambda *progress: told.append(progress))
    assert calls == [1, 16, 5]
    assert told == [(16, 21), (21, 21)]
    again = stored_cache(shown, compute, CPU, about)
    assert calls == [1, 16, 5, 1]  # the first image tells the shapes
    numbers = torch.tensor([20, 3, 3])
    wanted = compute(images(21)[numbers])
    for found in (one, again):
        for x, want in zip(found(numbers, images(21)[numbers], compute), wanted, strict=True):
            torch.testing.assert_close(x, want, rtol=0, atol=0)
    path = feature_file(shown, about)
    assert path.stat().st_size == 128 + 21 * (3 * 8 * 4 + 3 * 4 * 2) * 4


def test_features_of_other_weights_or_half_a_file_are_never_used():
    def brightness(x):
        return [F.avg_pool2d(x, 8)]

    def darkness(x):
        return [1 - F.avg_pool2d(x, 8)]

    shown, numbers = pictures(4), torch.arange(4)
    stored_cache(shown, brightness, CPU, {"backbone": "a"})
    other = stored_cache(shown, darkness, CPU, {"backbone": "b"})
    torch.testing.assert_close(other(numbers, images(4), darkness), darkness(images(4)))
    assert feature_file(shown, {"backbone": "a"}) != feature_file(shown[:3], {"backbone": "a"})
    for damaged in (lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99):
        path = feature_file(shown, {"backbone": "a"})
        path.write_bytes(damaged(path.read_bytes()))
        found = stored_cache(shown, brightness, CPU, {"backbone": "a"})
        torch.testing.assert_close(found(numbers, images(4), brightness), brightness(images(4)))
        assert np.load(path).shape == (4, 3 * 8 * 4)


def test_without_room_on_the_disk_features_stay_in_memory(monkeypatch, tmp_path):
    def compute(x):
        return [F.avg_pool2d(x, 8)]

    usage = feature_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.warns(DataWarning, match="take 0 MiB and 0 MiB are free; the features are kept"):
        found = stored_cache(pictures(4), compute, CPU, {})
    assert not list((tmp_path / "cache").rglob("*.npy"))
    torch.testing.assert_close(found(torch.arange(4), images(4), compute), compute(images(4)))


# What is refused


def test_a_size_that_the_scales_cannot_halve_is_refused_with_one_that_works():
    config = replace(CONFIGS["csflow"], image_size=(70, 100))
    backbone = build_backbone(config.backbone)
    with pytest.raises(UserError) as refused:
        config.for_data(backbone, [])
    assert str(refused.value) == (
        "--size: got 70 100; 3 scales of a layer of stride 8 need multiples of 32: try 64 96"
    )
    fits = replace(config, image_size=(64, 96)).for_data(backbone, [])
    detector = FlowDetector(fits, backbone)
    assert detector.predict(torch.zeros(1, 3, 64, 96)).maps.shape == (1, 64, 96)


def test_a_flow_reads_one_layer_of_an_even_number_of_channels():
    with pytest.raises(UserError, match="got 1 2; a flow reads one layer"):
        replace(CONFIGS["csflow"], backbone=replace(BACKBONE, layers=(1, 2)))
    backbone = build_backbone(BACKBONE)
    backbone.channels = (3,)
    with pytest.raises(UserError, match="resnet10t has 3 channels there"):
        CONFIGS["validflow"].for_data(backbone, [])


def test_the_papers_presets_have_the_papers_sizes():
    for recipe, epochs in ((csflow.RECIPE, 240), (validflow.RECIPE, 300)):
        config = recipe.presets["paper"]
        assert config.image_size == (768, 768)
        assert config.num_epochs == epochs
        assert (config.backbone.name, config.backbone.layers) == (
            "efficientnet_b5",
            ("features.6",),
        )
        with torch.device("meta"):
            flow = config.flow(304)
        assert sum(p.numel() for p in flow.parameters()) in (275_227_288, 162_885_132)


@pytest.mark.parametrize("name", ["tiny", "compact"])
def test_small_presets_fit_their_backbone(name):
    for recipe in (csflow.RECIPE, validflow.RECIPE):
        config = recipe.presets[name]
        backbone = build_backbone(config.backbone)
        assert config.for_data(backbone, [np.zeros((3, 8, 8, 3), np.uint8)]) == config
        assert (backbone.channels, backbone.strides) == ((112,), (16,))


def test_module_names_choose_any_map(tmp_path: Path):
    config = replace(
        CONFIGS["csflow"],
        image_size=(128, 128),
        backbone=BackboneConfig(name="efficientnet_b0", layers=("blocks.5",), weights="random"),
    )
    backbone = build_backbone(config.backbone)
    detector = FlowDetector(config.for_data(backbone, []), backbone)
    assert [tuple(x.shape) for x in detector.features(torch.zeros(1, 3, 128, 128))] == [
        (1, 192, 4, 4),
        (1, 192, 2, 2),
        (1, 192, 1, 1),
    ]

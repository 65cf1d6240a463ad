import itertools
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from detect.data.feature_cache import FEATURE_BYTES, FeatureCache, filled_cache
from detect.data.samples import BlendedDataset
from detect.data.sources import Part, open_source
from detect.detector import Batch, Stage
from detect.images import to_chw, to_unit
from detect.methods.realnet import PAPER, PRESETS, TINY, RealNet, RealNetConfig, select_channels
from detect.methods.realnet.separable import SeparableUNet
from detect.packing import packed
from detect.training.loop import Feed, train_stages
from synth.base.backbones import BackboneConfig, build_backbone
from synth.base.device import make_accelerator
from synth.base.errors import UserError
from synth.base.progress import no_bars
from synth.data.foreground import EVERYTHING

CONFIG = RealNetConfig(
    image_size=(32, 48),
    backbone=BackboneConfig(name="resnet18", layers=(1, 2), weights="random"),
    num_selected=(8, 12),
    width_factor=0.5,
    num_max=5,
    num_mean=5,
    head_widths=(8, 8, 4, 4),
    num_steps=20,
    learning_rate=3e-3,
)


def make_batch(seed: int = 0, num_images: int = 4) -> Batch:
    """Smooth grey images with a square of noise blended in."""
    rng = torch.Generator().manual_seed(seed)
    normal = torch.rand(num_images, 3, 4, 6, generator=rng) * 0.2 + 0.4
    normal = F.interpolate(normal, size=(32, 48), mode="bilinear")
    mask = torch.zeros(num_images, 32, 48, dtype=torch.bool)
    for n in range(num_images):
        y, x = torch.randint(0, 16, (2,), generator=rng).tolist()
        mask[n, y : y + 16, x : x + 16] = True
    noise = torch.rand(num_images, 3, 32, 48, generator=rng)
    return Batch(torch.where(mask.unsqueeze(1), noise, normal), normal, mask)


def make_model(config: RealNetConfig = CONFIG) -> RealNet:
    backbone = build_backbone(config.backbone)
    selected = select_channels(backbone, [make_batch(9)], config.num_selected)
    return RealNet(config, backbone, selected.indices)


def test_features_of_any_size_are_brought_to_a_resnets_by_exact_powers_of_two() -> None:
    scaled = replace(CONFIG, scale_features=True).scaled((5.15, 0.02))
    assert scaled.feature_exponents == (4, -4)
    assert replace(CONFIG, scale_features=True).scaled((0.09, 1.3)).feature_exponents == (0, 0)
    assert replace(CONFIG, scale_features=True).scaled((0.29, 0.0)).feature_exponents[0] == 0
    assert CONFIG.scaled((5.15, 0.02)) is CONFIG, "the paper's are as they are"
    assert RealNetConfig.from_json(json.loads(json.dumps(scaled.to_json()))) == scaled
    images = make_batch().image
    raw, other = make_model().features(images), make_model(scaled).features(images)
    assert torch.equal(other[0] * 16, raw[0])
    assert torch.equal(other[1] / 16, raw[1])
    whole = replace(scaled, num_selected=(64, 128))
    expected, found = make_model(whole).predict(images), packed(make_model(whole)).predict(images)
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="feature_exponents: got 1 for 2 backbone layers"):
        replace(CONFIG, feature_exponents=(1,))


def train(model: RealNet, stage: Stage, batches: list[Batch], num_steps: int) -> list[float]:
    model.train()
    optimizer = stage.optimizer(stage.trained(), lr=stage.lr)
    losses = []
    for step in range(num_steps):
        loss = torch.stack(
            list(stage.loss(batches[step % len(batches)], torch.Generator()).values())
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def trained() -> tuple[RealNet, list[float]]:
    model = make_model()
    (stage,) = model.stages()
    return model, train(model, stage, [make_batch(seed) for seed in range(4)], 80)


# --- learning --------------------------------------------------------------------------------


def test_the_whole_learns_and_finds_anomalies_it_has_not_seen(
    trained: tuple[RealNet, list[float]],
) -> None:
    model, losses = trained
    assert sum(losses[-4:]) < 0.25 * sum(losses[:4])
    unseen = make_batch(100)
    scores = model.predict(unseen.image)
    assert scores.maps[unseen.mask].mean() > 2 * scores.maps[~unseen.mask].mean()
    assert scores.image.min() > model.predict(unseen.normal).image.max()


def test_training_is_deterministic(trained: tuple[RealNet, list[float]]) -> None:
    model = make_model()
    losses = train(model, model.stages()[0], [make_batch(seed) for seed in range(4)], 3)
    assert losses == trained[1][:3]


def test_segmentation_gradients_reach_the_reconstruction_networks() -> None:
    model = make_model()
    for layer in (0, 1):
        torch.nn.init.normal_(model.get_parameter(f"reconstruction.{layer}.out.weight"), std=0.1)
    model.losses(make_batch())["segmentation"].backward()
    for layer, part in itertools.product((0, 1), ("stem", "out")):
        gradient = model.get_parameter(f"reconstruction.{layer}.{part}.weight").grad
        assert gradient is not None
        assert gradient.any()
    assert all(p.grad is None for p in model.backbone.parameters())


def test_the_stage_trains_everything_but_the_backbone() -> None:
    model = make_model()
    (stage,) = model.stages()
    owned = [*model.reconstruction.parameters(), *model.head.parameters()]
    assert {id(p) for p in stage.trained()} == {id(p) for p in owned}
    optimizer = stage.optimizer(stage.trained(), lr=stage.lr)
    assert (optimizer.defaults["lr"], stage.num_steps) == (3e-3, 20)
    digest = model.backbone.digest
    train(model, stage, [make_batch()], 2)
    assert model.backbone.digest == digest


# --- the two losses and the score against their definitions --------------------------------------


def test_losses_equal_their_definitions() -> None:
    model, batch = make_model().eval(), make_batch()
    output = model.get_parameter("reconstruction.0.out.weight")
    torch.nn.init.normal_(output, generator=torch.Generator().manual_seed(0))
    losses = model.losses(batch)

    def phi(images: torch.Tensor) -> list[torch.Tensor]:
        layers = model.backbone(images)
        return [x[:, sel.index] for x, sel in zip(layers, model.afs, strict=True)]

    phi_A, phi_I = phi(batch.image), phi(batch.normal)
    G = [network(x) for network, x in zip(model.reconstruction, phi_A, strict=True)]
    mse = sum(((g - i) ** 2).mean() for g, i in zip(G, phi_I, strict=True))
    torch.testing.assert_close(losses["reconstruction"], mse)

    p = model.predict(batch.image).maps
    cross_entropy = -torch.where(batch.mask, p, 1 - p).log().mean()
    torch.testing.assert_close(losses["segmentation"].detach(), cross_entropy)


def test_normalisation_happens_inside() -> None:
    model, images = make_model(), make_batch().image
    direct = model.backbone.net((images - model.backbone.mean) / model.backbone.std)
    for got, layer, selection in zip(model.features(images), direct, model.afs, strict=True):
        torch.testing.assert_close(got, layer[:, selection.index])


# --- prediction ----------------------------------------------------------------------------------


def test_predictions_are_probabilities_at_the_resolution_of_the_images() -> None:
    scores = make_model().predict(torch.rand(2, 3, 50, 37))
    assert (scores.image.shape, scores.maps.shape) == ((2,), (2, 50, 37))
    assert scores.image.dtype == scores.maps.dtype == torch.float32
    assert ((scores.maps >= 0) & (scores.maps <= 1)).all()


def test_predicting_while_training_changes_nothing(trained: tuple[RealNet, list[float]]) -> None:
    model, images = trained[0], make_batch(5).image
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = model.predict(images)
    assert model.training
    assert not scores.maps.requires_grad
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    statistic = "rrs.norm.running_mean"
    model.losses(make_batch(5))
    assert not torch.equal(before[statistic], model.state_dict()[statistic])
    model.load_state_dict(before)


def test_a_prediction_does_not_depend_on_the_batch(trained: tuple[RealNet, list[float]]) -> None:
    images = make_batch(6).image
    together = trained[0].predict(images)
    alone = trained[0].predict(images[2:3])
    torch.testing.assert_close(alone.maps[0], together.maps[2], rtol=1e-4, atol=1e-5)


def test_under_bfloat16_residuals_and_losses_stay_float32() -> None:
    model, batch = make_model(), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(batch)
        phi = model.features(batch.image)
        assert {x.dtype for x in [*phi, *model.reconstruct(phi)]} == {torch.float32}
        assert model.predict(batch.image).maps.dtype == torch.float32
    full = model.losses(batch)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full[name], rtol=0.05, atol=0.01)


# --- saving --------------------------------------------------------------------------------------


def test_a_saved_model_predicts_the_same_bits_without_its_original_weights(
    trained: tuple[RealNet, list[float]], tmp_path: Path
) -> None:
    model, images = trained[0], make_batch(7).image
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_json()))

    config = RealNetConfig.from_json(json.loads((tmp_path / "config.json").read_text()))
    gone = replace(config, backbone=replace(config.backbone, weights="/gone.safetensors", seed=3))
    loaded = RealNet.from_state(gone, load_file(tmp_path / "model.safetensors"))
    for got, want in zip(loaded.predict(images), model.predict(images), strict=True):
        assert torch.equal(got, want)
    assert loaded.backbone.digest == model.backbone.digest


def test_a_state_of_another_configuration_is_refused() -> None:
    state = make_model().state_dict()
    with pytest.raises(UserError, match="do not fit the configuration"):
        RealNet.from_state(replace(CONFIG, num_selected=(8, 16)), state)
    del state["afs.0.index"]
    with pytest.raises(UserError, match=r"afs\.0\.index"):
        RealNet.from_state(CONFIG, state)


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    text = json.dumps(PRESETS[name].to_json())
    assert RealNetConfig.from_json(json.loads(text)) == PRESETS[name]


def test_the_paper_preset_has_the_papers_size() -> None:
    with torch.device("meta"):
        backbone = build_backbone(replace(PAPER.backbone, weights="random"))
        model = RealNet(PAPER, backbone, [torch.arange(m) for m in PAPER.num_selected])
    assert sum(p.numel() for p in backbone.parameters()) == 66_834_240
    assert sum(p.numel() for p in model.stages()[0].trained()) == 518_236_160 + 5_872_662


@pytest.mark.parametrize(("name", "millions"), [("tiny", (1, 3)), ("small", (5, 10))])
def test_small_presets_are_small(name: str, millions: tuple[int, int]) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        backbone = build_backbone(replace(config.backbone, weights="random"))
        model = RealNet(config, backbone, [torch.arange(m) for m in config.num_selected])
    size = sum(p.numel() for p in model.stages()[0].trained()) / 1e6
    assert millions[0] < size < millions[1]


def test_fields_are_checked() -> None:
    with pytest.raises(UserError, match="num_selected: got 2 counts for 3 backbone layers"):
        replace(TINY, num_selected=(8, 8))
    with pytest.raises(UserError, match="num_max, num_mean: got 161 and 32; allowed are 0 to 160"):
        replace(TINY, num_max=161)
    with pytest.raises(UserError, match="every count times the factor"):
        replace(TINY, width_factor=0.001)
    with pytest.raises(UserError, match="--num-steps: got 0, must be greater than 0"):
        replace(TINY, num_steps=0)
    data = TINY.to_json()
    data["selected"] = data.pop("num_selected")
    expected = r"unknown fields \['selected'\], absent fields \['num_selected'\]"
    with pytest.raises(UserError, match=expected):
        RealNetConfig.from_json(data)


def test_models_older_than_a_field_keep_its_default() -> None:
    data = TINY.to_json()
    del data["separable"]
    assert RealNetConfig.from_json(data) == TINY


# --- features are computed once -----------------------------------------------------------


def mixed_batch() -> Batch:
    """Images 0, 1, 2 and 0 again; the first and the last have nothing blended in."""
    normal = make_batch().normal[[0, 1, 2, 0]]
    mask = make_batch().mask[[0, 1, 2, 0]]
    mask[[0, 3]] = False
    image = torch.where(mask.unsqueeze(1), torch.rand(4, 3, 32, 48), normal)
    return Batch(image, normal, mask, torch.tensor([0, 1, 2, 0]))


def as_uint8(images: torch.Tensor) -> list[NDArray[np.uint8]]:
    return [*(images * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()]


@pytest.mark.parametrize("limit", [None, FEATURE_BYTES, 0, 10_000])
def test_training_features_are_those_of_every_image_computed_alone(limit: int | None) -> None:
    model = make_model()
    pictures = as_uint8(make_batch().normal[:3])
    normal = torch.stack([to_unit(to_chw(picture)) for picture in pictures])[[0, 1, 2, 0]]
    batch = mixed_batch()
    batch = batch._replace(
        normal=normal, image=torch.where(batch.mask.unsqueeze(1), batch.image, normal)
    )
    if limit is not None:
        model.cache = filled_cache(pictures, model._features, torch.device("cpu"), limit=limit)
        assert model.cache.num_kept == {FEATURE_BYTES: 3, 0: 0, 10_000: 2}[limit]
    for _ in range(2):
        phi_A, phi_I = model.training_features(batch)
        for k in range(2):
            alone_A = torch.cat([model.features(x[None])[k] for x in batch.image])
            alone_I = torch.cat([model.features(x[None])[k] for x in batch.normal])
            torch.testing.assert_close(phi_A[k], alone_A, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(phi_I[k], alone_I, rtol=1e-5, atol=1e-5)
        phi_A[0].zero_()  # what is handed out is the caller's


def test_the_cache_computes_each_normal_image_once_in_order_and_keeps_to_its_limit() -> None:
    seen: list[int] = []

    def double(images: torch.Tensor) -> list[torch.Tensor]:
        return [images * 2, images[:, :, ::2, ::2] + 1]

    def compute(images: torch.Tensor) -> list[torch.Tensor]:
        seen.extend((255 * images.flatten(1).amax(1)).round().int().tolist())
        return double(images)

    pictures = [np.full((4, 4, 3), n, np.uint8) for n in range(40)]

    def ask(cache: FeatureCache, *numbers: int) -> None:
        images = torch.stack([to_unit(to_chw(pictures[n])) for n in numbers])
        found = cache(torch.tensor(numbers), images, compute)
        for maps, right in zip(found, double(images), strict=True):
            assert torch.equal(maps, right)

    told: list[tuple[int, int]] = []
    cpu = torch.device("cpu")
    cache = filled_cache(pictures, compute, cpu, lambda *progress: told.append(progress))
    assert told == [(16, 40), (32, 40), (40, 40)]
    ask(cache, 1, 39, 4)
    ask(cache, 4, 7, 1)
    assert seen == list(range(40))

    small = filled_cache(pictures, compute, cpu, limit=18 * (3 * 16 + 3 * 4) * 4)
    assert [len(maps) for maps in small.maps] == [18, 18]
    seen.clear()
    ask(small, 1, 18, 17)
    ask(small, 25, 30)
    ask(small, 3)
    assert seen == [18, 25, 30]


def test_a_training_that_goes_on_has_the_features_that_it_had(tmp_path: Path) -> None:
    """Convolutions round by the size of a batch: at this size, and with these weights, visibly."""
    rng = np.random.default_rng(0)
    normals = np.stack(
        [cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3), np.uint8), (0, 0), 3) for _ in range(9)]
    )
    noise = open_source([Part("noise")]).load((64, 64), False, no_bars)
    dataset = BlendedDataset(normals.astype(np.uint8), EVERYTHING, noise, seed=1)
    backbone = BackboneConfig(name="resnet18", layers=(1, 2, 3), weights="random")
    config = replace(TINY, image_size=(64, 64), backbone=backbone, batch_size=4, official=True)

    def trained(folder: Path, *lengths: int) -> dict[str, torch.Tensor]:
        for num_steps in lengths:
            backbone = build_backbone(config.backbone)
            indices = [torch.arange(m) for m in config.num_selected]
            model = RealNet(replace(config, num_steps=num_steps), backbone, indices)
            model.remember(list(normals))
            train_stages(Feed(make_accelerator("fp32"), dataset, 4), model, folder)
        return model.state_dict()

    whole, parts = trained(tmp_path / "whole", 4), trained(tmp_path / "parts", 2, 4)
    assert [name for name, x in whole.items() if not torch.equal(x, parts[name])] == []


def test_separable_networks_reconstruct_any_size_and_start_at_zero() -> None:
    net = SeparableUNet(6, 4, (1, 2, 4), 2)
    for size in ((8, 8), (5, 7), (16, 12)):
        x = torch.rand(2, 6, *size)
        assert net(x).shape == x.shape
        assert not net(x).any()


def test_a_separable_network_learns_to_undo_an_anomaly_in_its_features() -> None:
    torch.manual_seed(0)
    net = SeparableUNet(6, 8, (1, 2), 1)
    normal = torch.rand(1, 6, 1, 1).expand(8, 6, 16, 16)
    blended = normal.clone()
    blended[:, :, 4:8, 4:8] += torch.randn(8, 6, 4, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(150):
        loss = F.mse_loss(net(blended), normal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * F.mse_loss(blended, normal).item()


def test_compact_is_a_tenth_of_small() -> None:
    sizes = {}
    for name in ("compact", "small"):
        config = PRESETS[name]
        config = replace(config, backbone=replace(config.backbone, weights="random"))
        with torch.device("meta"):
            indices = [torch.zeros(m, dtype=torch.int64) for m in config.num_selected]
            model = RealNet(config, build_backbone(config.backbone), indices)
        sizes[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes["compact"] == 613_542
    assert 10 * sizes["compact"] < sizes["small"]

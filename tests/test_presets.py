"""RealNet's presets, its blocks of layers, and any timm network below it."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import Command
from products import normal_image, write_product

from detect.checkpoint import load_detector
from detect.data.samples import BlendedDataset
from detect.data.sources import Anomaly
from detect.detector import Batch
from detect.methods import METHODS
from detect.methods.realnet import PAPER, TINY, RealNet, RealNetConfig, select_channels
from detect.methods.realnet.blocks import aligned, joined_blocks
from detect.methods.realnet.config import HIAD, PAPER_C
from detect.options import TrainOptions
from synth.base.backbones import BackboneConfig, build_backbone
from synth.base.errors import UserError
from synth.data.foreground import EVERYTHING
from synth.perlin import perlin_mask

SMALLEST = RealNetConfig(
    image_size=(32, 48),
    backbone=BackboneConfig(name="resnet10t", layers=(1, 2, 3), weights="random"),
    num_selected=(6, 8, 10),
    blocks=((1, 2), (3,)),
    num_max=4,
    num_mean=4,
    head_widths=(8, 8, 4, 4),
)


def make_batch(size: tuple[int, int] = (32, 48)) -> Batch:
    g = torch.Generator().manual_seed(0)
    normal = torch.rand(2, 3, *size, generator=g)
    mask = torch.zeros(2, *size, dtype=torch.bool)
    mask[:, 8:24, 8:24] = True
    noise = torch.rand(2, 3, *size, generator=g)
    return Batch(torch.where(mask.unsqueeze(1), noise, normal), normal, mask)


def make_model(config: RealNetConfig) -> RealNet:
    backbone = build_backbone(config.backbone)
    indices = [
        torch.randperm(C, generator=torch.Generator().manual_seed(1))[:m].sort().values
        for C, m in zip(backbone.channels, config.num_selected, strict=True)
    ]
    return RealNet(config, backbone, indices)


# Sizes


@pytest.mark.parametrize(
    ("preset", "reconstruction"),
    [(PAPER, 518_236_160), (PAPER_C, 932_554_752), (HIAD, 259_118_080)],
)
def test_large_presets_have_the_published_sizes(preset: RealNetConfig, reconstruction: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone(replace(preset.backbone, weights="random"))
        model = RealNet(preset, backbone, [torch.arange(m) for m in preset.num_selected])
    assert sum(p.numel() for p in model.reconstruction.parameters()) == reconstruction
    assert sum(p.numel() for p in model.head.parameters()) == 5_872_662
    assert (preset.learning_rate, preset.batch_size) == (1e-4, 16)


def realnet_config(options: TrainOptions) -> RealNetConfig:
    return METHODS["realnet"].recipe().configure(replace(options, method="realnet"))


@pytest.mark.parametrize("name", METHODS)
def test_a_row_names_the_presets_that_there_are(name: str) -> None:
    assert METHODS[name].presets == tuple(METHODS[name].recipe().presets)
    with pytest.raises(UserError, match=f"--preset: got huge, allowed for {name}: tiny, compact"):
        METHODS[name].recipe().configure(TrainOptions(method=name, preset="huge"))


def test_epochs_become_steps_once_the_images_are_known() -> None:
    config = realnet_config(TrainOptions(preset="paper"))
    assert config.for_images(209).num_steps == 13_063  # 1000 * 209 / 16, rounded up
    assert config.for_images(209).num_epochs is None
    theirs = realnet_config(TrainOptions(preset="paper", official=True))
    assert theirs.for_images(209).num_steps == 14_000  # whole batches only
    assert theirs.for_images(208).num_steps == config.for_images(208).num_steps == 13_000
    assert config.for_images(209).for_images(3).num_steps == 13_063
    chosen = realnet_config(TrainOptions(preset="paper", num_steps=70))
    assert chosen.for_images(209).num_steps == 70
    with pytest.raises(UserError, match="num_epochs: got 0, must be greater than 0"):
        replace(PAPER, num_epochs=0)


def test_epochs_can_be_chosen_for_any_preset() -> None:
    for preset in ("tiny", "paper"):
        config = realnet_config(TrainOptions(preset=preset, num_epochs=3, batch_size=16))
        assert config.for_images(209).num_steps == 40  # 3 * 209 / 16, rounded up
    with pytest.raises(UserError, match="--num-epochs: got 0, must be greater than 0"):
        realnet_config(TrainOptions(num_epochs=0))
    with pytest.raises(UserError, match="--num-epochs: not used with --num-steps; give one"):
        realnet_config(TrainOptions(num_epochs=3, num_steps=70))


# The authors' group norms


def test_paper_has_32_groups_at_every_width_that_they_divide() -> None:
    small = replace(PAPER, backbone=SMALLEST.backbone, num_selected=(64, 64, 128))
    assert small.reconstruction_widths == (32, 32, 64)
    backbone = build_backbone(small.backbone)
    indices = [torch.arange(m) for m in (64, 64, 128)]
    network = RealNet(small, backbone, indices)
    norms = [m for m in network.reconstruction.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {32}
    before = RealNetConfig.from_json(
        {k: v for k, v in small.to_json().items() if k != "norm_groups"}
    )  # a detector that was trained with fewer groups stays what it is
    older = RealNet(before, backbone, indices).reconstruction[0].modules()
    assert min(m.num_groups for m in older if isinstance(m, torch.nn.GroupNorm)) == 8
    x = torch.randn(2, 32, 5, 4, generator=torch.Generator().manual_seed(0))
    want = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norms[0](x), want)  # one channel a group


def test_widths_that_32_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match=r"norm_groups: got 32 for U-Nets that are \(24,"):
        replace(PAPER, backbone=SMALLEST.backbone, num_selected=(48, 64, 128))


# Blocks of layers


def test_a_block_has_the_size_of_its_first_layer() -> None:
    g = torch.Generator().manual_seed(0)
    sizes = [(3, 8, 12), (2, 4, 6), (5, 2, 3)]
    maps = [torch.randn(2, *size, generator=g) for size in sizes]
    both = aligned(maps, SMALLEST.layer_blocks)
    assert torch.equal(both[0], maps[0])
    assert torch.equal(both[2], maps[2])
    y, x = 5, 7  # by hand: corners fall on corners
    row, column = y * 3 / 7, x * 5 / 11
    r, c = int(row), int(column)
    a, b = row - r, column - c
    corner = maps[1][:, :, r : r + 2, c : c + 2]
    weights = torch.tensor([[(1 - a) * (1 - b), (1 - a) * b], [a * (1 - b), a * b]])
    torch.testing.assert_close(both[1][:, :, y, x], (corner * weights).sum((2, 3)))
    one, two = joined_blocks(maps, SMALLEST.layer_blocks)
    assert torch.equal(one, torch.cat(both[:2], dim=1))
    assert torch.equal(two, maps[2])


def test_a_block_is_reconstructed_as_a_whole() -> None:
    model, batch = make_model(SMALLEST).eval(), make_batch()
    assert [network.stem.in_channels for network in model.reconstruction] == [14, 10]
    losses = model.losses(batch)

    def phi(images: torch.Tensor) -> list[torch.Tensor]:
        a, b, c = (
            x[:, select.index] for x, select in zip(model.backbone(images), model.afs, strict=True)
        )
        b = F.interpolate(b, size=a.shape[-2:], mode="bilinear", align_corners=True)
        return [torch.cat([a, b], dim=1), c]

    G = [network(x) for network, x in zip(model.reconstruction, phi(batch.image), strict=True)]
    mse = sum(((g - i) ** 2).mean() for g, i in zip(G, phi(batch.normal), strict=True))
    torch.testing.assert_close(losses["reconstruction"], mse)
    assert model.predict(batch.image).maps.shape == (2, 32, 48)


def test_blocks_survive_json_and_older_files_do_without() -> None:
    text = json.dumps(PAPER_C.to_json())
    assert RealNetConfig.from_json(json.loads(text)) == PAPER_C
    old = TINY.to_json()
    for name in ("blocks", "num_epochs", "official", "scale_features"):
        del old[name]
    expected = replace(TINY, scale_features=False)  # as they were trained
    assert RealNetConfig.from_json(old) == expected


@pytest.mark.parametrize("blocks", [((1,), (2,)), ((1, 2), (2, 3)), ((2,), (1, 3))])
def test_every_layer_is_in_one_block(blocks: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(UserError, match=r"blocks: got .* every layer belongs to one block"):
        replace(SMALLEST, blocks=blocks)


# Other backbones


def test_other_layers_keep_what_the_nearest_of_the_preset_keeps() -> None:
    assert TINY.with_layers((2, 3)).num_selected == (64, 64)
    assert TINY.with_layers((1,)).num_selected == (32,)
    assert TINY.with_layers((1,)).num_max == 32
    assert replace(TINY, num_max=100).with_layers((1,)).num_max == 32
    assert PAPER.with_layers((3, 6, 9)).num_selected == (512, 256, 256)
    assert HIAD.with_layers((1, 2)).num_selected == (256, 256)
    assert PAPER_C.with_layers((1, 2, 4)).blocks == ((1, 2), (4,))
    assert PAPER_C.with_layers((3, 4)).blocks == ((3, 4),)
    chosen = realnet_config(TrainOptions(backbone_layers=(2,), backbone_std=(0.5, 0.5, 0.5)))
    assert chosen.backbone.layers == (2,)
    assert chosen.backbone.std == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match="backbone layers: got 3 1; give one or more in ascending"):
        realnet_config(TrainOptions(backbone_layers=(3, 1)))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", (1, 2, 3)),
        ("mobilenetv2_100", (2, 4)),
        ("efficientnet_b0", (1, 3)),
        ("convnext_atto", (1, 2)),
        ("vit_tiny_patch16_224", (2, 4)),
    ],
)
def test_any_family_of_networks_serves(name: str, layers: tuple[int, ...]) -> None:
    config = replace(
        TINY.with_layers(layers),
        image_size=(32, 48),
        backbone=BackboneConfig(name=name, layers=layers, weights="random"),
    )
    backbone, batch = build_backbone(config.backbone), make_batch()
    backbone.require_image_size(config.image_size)
    config = config.fitted(backbone.channels)
    chosen = select_channels(backbone, [batch], config.num_selected)
    model = RealNet(config, backbone, chosen.indices)
    losses = model.losses(batch)
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(value) for value in losses.values())
    gradient = model.get_parameter("reconstruction.0.out.weight").grad
    assert gradient is not None
    assert gradient.any()
    scores = model.predict(batch.image)
    assert scores.maps.shape == (2, 32, 48)


def test_a_vit_is_trained_where_its_patches_fit(monkeypatch, capsys, tmp_path) -> None:
    run = Command(monkeypatch, capsys)
    product = write_product(tmp_path / "widget", num_train=4)
    words = (
        *("detect", "train", "--root", product, "--out", tmp_path / "out", "--source", "noise"),
        *("--method", "realnet"),
        *("--backbone", "vit_tiny_patch16_224", "--backbone-weights", "random"),
        *("--backbone-layers", 2, "--batch-size", 2, "--num-steps", 1, "--precision", "fp32"),
    )
    line = run.refused(*words, "--size", 40, 48)
    assert "the backbone cannot take images of 40 x 48 px" in line
    assert line.endswith("try --size 32 48")
    ended = run(*words, "--size", 32, 48)
    assert ended.code == 0, ended
    detector = json.loads((tmp_path / "out/config.json").read_text())["detector"]
    assert detector["backbone"]["layers"] == [2]
    assert detector["num_selected"] == [64]


@pytest.mark.parametrize(
    ("name", "preset", "layers"),
    [
        ("vit_tiny_patch16_224", "tiny", (3, 6, 9)),
        ("vit_tiny_patch16_224", "hiad", (4, 8)),
        ("vit_tiny_patch16_224", "paper", (3, 5, 8, 10)),
        ("test_vit", "tiny", (2, 3, 5)),  # of six blocks
        ("mobilenetv2_050", "tiny", (1, 2, 3)),
        ("convnext_atto", "hiad", (2, 3)),
    ],
)
def test_blocks_of_a_vit_are_spread_over_its_depth(name: str, preset: Any, layers: tuple) -> None:
    options = TrainOptions(method="realnet", backbone=name, preset=preset)
    config = realnet_config(options)
    assert config.backbone.layers == layers
    assert len(config.num_selected) == len(layers)
    chosen = replace(options, backbone_layers=(1, 2))
    assert realnet_config(chosen).backbone.layers == (1, 2)
    if name == "vit_tiny_patch16_224":
        own = replace(options, method="patch-nn", preset="tiny")
        assert METHODS["patch-nn"].recipe().configure(own).backbone.layers == (4, 8)
        assert config == realnet_config(replace(options, backbone_layers=layers))


def test_layers_of_an_unknown_network_are_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"backbone name: got 'resnet81'.*did you mean resnet"):
        realnet_config(TrainOptions(backbone="resnet81"))


def test_a_vit_is_trained_on_its_spread_blocks(monkeypatch, capsys, tmp_path) -> None:
    run = Command(monkeypatch, capsys)
    product = write_product(tmp_path / "widget", num_train=4)
    words = (
        *("detect", "train", "--root", product, "--out", tmp_path / "out", "--source", "noise"),
        *("--method", "realnet"),
        *("--backbone", "test_vit", "--backbone-weights", "random", "--size", 32, 32),
        *("--batch-size", 2, "--num-steps", 1, "--precision", "fp32"),
    )
    assert run(*words).code == 0
    trained = load_detector(tmp_path / "out", torch.device("cpu")).detector
    assert isinstance(trained, RealNet)
    assert trained.config.backbone.layers == (2, 3, 5)
    scores = trained.predict(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert scores.image[0] != scores.image[1]


# The authors' way


def test_the_official_way_keeps_empty_masks_and_truncates(monkeypatch) -> None:
    monkeypatch.setattr(  # the same masks for both, so that their pixels compare
        "synth.blend.perlin_mask", lambda rng, size, official: perlin_mask(rng, size)
    )
    normals = np.stack([normal_image(n) for n in range(4)])

    def draw(rng: np.random.Generator, normal: np.ndarray) -> Anomaly:
        return Anomaly(rng.integers(0, 256, normal.shape, dtype=np.uint8), (0.5, 1.0))

    def samples(official: bool) -> list:
        data = BlendedDataset(
            normals, EVERYTHING, draw, seed=0, anomalous_share=1.0, official=official
        )
        return [data[number] for number in range(60)]

    ours, theirs = samples(False), samples(True)
    assert all(sample.mask.any() for sample in ours)
    empty = [sample for sample in theirs if not sample.mask.any()]
    assert empty
    assert all(torch.equal(sample.image, sample.normal) for sample in empty)
    same = [
        (a, b)
        for a, b in zip(ours, theirs, strict=True)
        if b.mask.any() and torch.equal(a.mask, b.mask)
    ]
    lower = torch.cat([(a.image.int() - b.image.int())[:, a.mask].flatten() for a, b in same])
    assert set(lower.tolist()) == {0, 1}
    assert lower.float().mean() == pytest.approx(0.5, abs=0.05)


def test_the_official_way_leaves_the_last_step_as_it_is(monkeypatch, capsys, tmp_path) -> None:
    from safetensors.torch import load_file

    run = Command(monkeypatch, capsys)
    product = write_product(tmp_path / "widget", num_train=4)
    words = (
        *("detect", "train", "--root", product, "--out", tmp_path / "out", "--source", "noise"),
        *("--method", "realnet"),
        *("--backbone", "resnet10t", "--backbone-weights", "random", "--size", 32, 32),
        *("--batch-size", 2, "--num-steps", 3, "--precision", "fp32", "--official"),
    )
    assert "not used with --official" in run.refused(*words, "--patience", 2)
    assert run(*words).code == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["detector"]["official"] is True
    state = load_file(tmp_path / "out/realnet/state.safetensors")
    model = load_file(tmp_path / "out/model.safetensors")
    last = {name.removeprefix("model."): v for name, v in state.items() if name[:6] == "model."}
    assert last.keys() == {n for n in model if not n.startswith(("backbone.", "afs."))}
    assert all(torch.equal(last[name], model[name]) for name in last)
    assert int(model["rrs.norm.num_batches_tracked"]) == 3

from pathlib import Path

import cv2
import huggingface_hub.constants
import pytest
import skimage.data
import timm
import torch
from safetensors.torch import save_file

from synth.base.backbone_weights import BUNDLED, from_package
from synth.base.backbones import Backbone, BackboneConfig, build_backbone, seeded_init
from synth.base.errors import UserError

RESNET = BackboneConfig(name="resnet18", layers=(1, 2), weights="random")


@pytest.fixture(scope="module")
def full_resnet() -> torch.nn.Module:
    with seeded_init(7):
        return timm.create_model("resnet18", zero_init_last=False).eval()


@pytest.fixture(scope="module")
def weights_file(full_resnet: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(full_resnet.state_dict(), path)
    return path


def from_file(path: Path, layers: tuple[int, ...] = (1, 2)) -> Backbone:
    return build_backbone(BackboneConfig(name="resnet18", layers=layers, weights=str(path)))


def test_features_are_those_of_the_full_network_after_normalisation(
    full_resnet: torch.nn.Module, weights_file: Path
) -> None:
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    maps = from_file(weights_file, layers=(1, 3))(images)

    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    captured: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: object, out: torch.Tensor) -> None:
        captured.append(out)

    for layer in ("layer1", "layer3"):
        full_resnet.get_submodule(layer).register_forward_hook(keep)
    with torch.no_grad():
        full_resnet((images - mean) / std)
    for got, want in zip(maps, captured, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers", "channels"),
    [
        ("resnet18", (1, 2, 3), (64, 128, 256)),
        ("mobilenetv2_100", (1, 4), (24, 320)),
        ("efficientnet_b0", (2, 3), (40, 112)),
        ("convnext_atto", (1, 2), (40, 80)),
    ],
)
def test_layer_k_has_stride_2_to_the_k_plus_1(
    name: str, layers: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    backbone = build_backbone(BackboneConfig(name=name, layers=layers, weights="random"))
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert backbone.strides == tuple(2 ** (k + 1) for k in layers)
    assert backbone.channels == channels
    expected = [(1, c, 64 // s, 96 // s) for c, s in zip(channels, backbone.strides, strict=True)]
    assert [tuple(x.shape) for x in maps] == expected


VIT = BackboneConfig(name="vit_tiny_patch16_224", layers=(1, 3), weights="random")


def test_blocks_of_a_vit_are_its_layers_at_any_multiple_of_the_patch() -> None:
    backbone = build_backbone(VIT)
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    maps = backbone(images)
    assert (backbone.strides, backbone.channels) == ((16, 16), (192, 192))
    assert [tuple(x.shape) for x in maps] == [(2, 192, 2, 3)] * 2

    with seeded_init(VIT.seed):
        full = timm.create_model(VIT.name, dynamic_img_size=True).eval()
    captured: dict[int, torch.Tensor] = {}
    for block in (0, 2):
        full.get_submodule(f"blocks.{block}").register_forward_hook(
            lambda module, args, out, block=block: captured.update({block: out})
        )
    with torch.no_grad():
        full((images - 0.5) / 0.5)  # its own normalisation, not ImageNet's
    for got, block in zip(maps, (0, 2), strict=True):
        tokens = captured[block][:, 1:]  # the first is the class token
        torch.testing.assert_close(got.flatten(2).mT, tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_tiny_patch16_224", (40, 30), "multiples of the patches' 16 px: try --size 32 32"),
        ("mixer_s32_224", (64, 64), "takes --size 224 224 alone"),
        ("inception_v4", (8, 8), "cannot take images of 8 x 8 px .*; give a larger --size"),
    ],
)
def test_a_size_that_the_network_cannot_take_is_refused(
    name: str, size: tuple[int, int], message: str
) -> None:
    backbone = build_backbone(BackboneConfig(name=name, layers=(4,), weights="random"))
    with pytest.raises(UserError, match=message):
        backbone.require_image_size(size)


def test_sizes_that_the_network_can_take_are_not_refused() -> None:
    build_backbone(VIT).require_image_size((16, 64))
    build_backbone(RESNET).require_image_size((8, 9))


def test_the_network_is_cut_after_the_last_layer() -> None:
    def size(backbone: Backbone) -> int:
        return sum(p.numel() for p in backbone.parameters())

    assert not any("layer3" in key for key in build_backbone(RESNET).state_dict())
    mobilenet = BackboneConfig(name="mobilenetv2_100", layers=(1,), weights="random")
    full = sum(p.numel() for p in timm.create_model("mobilenetv2_100").parameters())
    assert size(build_backbone(mobilenet)) < full / 50


def test_it_stays_frozen_and_in_evaluation_mode() -> None:
    parent = torch.nn.Sequential(build_backbone(RESNET)).train()
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    parent(torch.rand(2, 3, 32, 32))
    assert not any(module.training for module in parent[0].modules())
    assert not any(p.requires_grad for p in parent.parameters())
    assert all(torch.equal(before[key], value) for key, value in parent.state_dict().items())


def test_random_weights_depend_on_the_seed_alone_and_leave_the_global_generator() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = build_backbone(RESNET).digest
    assert torch.equal(torch.rand(1), expected)
    assert build_backbone(RESNET).digest == first
    other = BackboneConfig(name="resnet18", layers=(1, 2), weights="random", seed=1)
    assert build_backbone(other).digest != first


def test_random_residual_branches_contribute() -> None:
    gains = [v for k, v in build_backbone(RESNET).state_dict().items() if k.endswith("bn2.weight")]
    assert gains
    assert all((gain == 1).all() for gain in gains)


def test_the_digest_sees_one_changed_weight_and_the_normalisation(weights_file: Path) -> None:
    backbone = from_file(weights_file)
    assert backbone.digest == from_file(weights_file).digest
    config = BackboneConfig(
        name="resnet18", layers=(1, 2), weights=str(weights_file), mean=(0.5, 0.5, 0.5)
    )
    assert build_backbone(config).digest != backbone.digest
    before = backbone.digest
    next(backbone.parameters()).view(-1)[5] += 1e-3
    assert backbone.digest != before


def test_given_mean_and_std_are_used() -> None:
    half = (0.5, 0.5, 0.5)
    config = BackboneConfig(name="resnet18", layers=(1,), weights="random", mean=half, std=half)
    images = torch.rand(1, 3, 32, 32)
    backbone = build_backbone(config)
    (got,), (want,) = backbone(images), backbone.net(images * 2 - 1)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": (123.7, 116.3, 103.5)}, "backbone mean: got 123.7 .* between 0 and 1"),
        ({"std": (0.2, 0.0, 0.2)}, "backbone std: got 0.2 0.0 0.2; none may be 0"),
    ],
)
def test_normalisations_are_checked(values: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BackboneConfig(name="resnet18", layers=(1,), **values)


def test_a_cut_file_is_enough_for_the_layers_it_holds(
    full_resnet: torch.nn.Module, weights_file: Path, tmp_path: Path
) -> None:
    state = full_resnet.state_dict()
    cut = {k: v for k, v in state.items() if not k.startswith(("layer3", "layer4", "fc"))}
    save_file(cut, tmp_path / "cut.safetensors")
    assert from_file(tmp_path / "cut.safetensors").digest == from_file(weights_file).digest
    with pytest.raises(UserError, match=r"cut\.safetensors lacks layer3\.0\.conv1\.weight"):
        from_file(tmp_path / "cut.safetensors", layers=(1, 3))


def test_a_file_of_another_network_is_refused(full_resnet: torch.nn.Module, tmp_path: Path) -> None:
    state = dict(full_resnet.state_dict())
    path = tmp_path / "odd.safetensors"
    save_file({**state, "layer1.0.conv9.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"has unknown layer1\.0\.conv9\.weight"):
        from_file(path)
    save_file({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(UserError, match=r"misshapes conv1\.weight"):
        from_file(path)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.safetensors, which is not a file"):
        from_file(tmp_path / "absent.safetensors")
    path = tmp_path / "text.safetensors"
    path.write_bytes(b"no weights in here")
    with pytest.raises(UserError, match=r"text\.safetensors is not a readable weights file"):
        from_file(path)


@pytest.mark.parametrize("name", ["resnet81", "resnet18.tv_in2k"])
def test_an_unknown_name_gets_close_matches(name: str) -> None:
    with pytest.raises(UserError, match=rf"got '{name}'.*did you mean .*resnet18"):
        build_backbone(BackboneConfig(name=name, layers=(1,), weights="random"))


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("resnet18", 5, r"no layer 5; it has layers 1 \(stride 4\), .* 4 \(stride 32\)"),
        ("vit_tiny_patch16_224", 13, "no layer 13; it has blocks 1 to 12, all of stride 16"),
    ],
)
def test_an_absent_layer_is_named(name: str, layer: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(BackboneConfig(name=name, layers=(layer,), weights="random"))


@pytest.mark.parametrize("layers", [(), (2, 1), (1, 1), (0, 1), ("layer2", "layer2")])
def test_layers_are_checked(layers: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="ascending order"):
        BackboneConfig(name="resnet18", layers=layers)


def test_without_the_hub_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"'resnet18' could not be downloaded .* FILE with .*timm/resnet18\.a1_in1k"
    ):
        build_backbone(BackboneConfig(name="resnet18", layers=(1,)))


# Modules by name


def test_a_module_is_reached_by_its_name(full_resnet: torch.nn.Module, weights_file: Path) -> None:
    """layer2.0 is a map that no number names; the network is cut behind it."""
    backbone = build_backbone(
        BackboneConfig(name="resnet18", layers=("layer2.0", "layer1"), weights=str(weights_file))
    )
    assert (backbone.channels, backbone.strides) == ((128, 64), (8, 4))
    assert not any("layer3" in key or "layer2.1" in key for key in backbone.state_dict())
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    (middle, first) = backbone(images)
    expected = from_file(weights_file, layers=(1, 2))
    torch.testing.assert_close(first, expected(images)[0])
    whole = full_resnet.get_submodule("layer2.1")
    with torch.no_grad():
        torch.testing.assert_close(whole(middle), expected(images)[1], rtol=1e-4, atol=1e-4)


def test_cs_flows_map_of_efficientnet_b5_is_within_reach() -> None:
    config = BackboneConfig(name="tf_efficientnet_b5", layers=("blocks.5",), weights="random")
    backbone = build_backbone(config)
    assert (backbone.channels, backbone.strides) == ((304,), (32,))
    assert sum(p.numel() for p in backbone.parameters()) == pytest.approx(17.54e6, rel=1e-3)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("layer9",), "no module 'layer9'; did you mean layer"),
        (("layer1", 2), "give numbers alone or names alone"),
        (("fc",), r"fc of 'resnet18' gives \[1000\], not a map"),
    ],
)
def test_names_of_modules_are_checked(layers: tuple[int | str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(BackboneConfig(name="resnet18", layers=layers, weights="random"))


# Weights that come in a package


@pytest.mark.parametrize(
    ("picture", "labels"), [("chelsea", {281, 282, 285}), ("coffee", {504, 967, 968})]
)
def test_bundled_weights_know_what_photographs_show(picture: str, labels: set[int]) -> None:
    """ImageNet's tabby, tiger and Egyptian cats; mug, espresso and cup."""
    name = "tf_efficientnet_lite0"
    net = timm.create_model(name).eval()
    net.load_state_dict(from_package(name, net.state_dict()), strict=True)
    photograph = cv2.resize(
        getattr(skimage.data, picture)(), (224, 224), interpolation=cv2.INTER_AREA
    )
    x = torch.from_numpy(photograph).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        assert labels & set(net(x).topk(5).indices[0].tolist())


def test_bundled_weights_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tf_efficientnet_lite0"
    with pytest.raises(UserError, match="none are bundled for 'resnet18', only for tf_"):
        build_backbone(BackboneConfig(name="resnet18", layers=(1,), weights="bundled"))
    config = BackboneConfig(name=name, layers=(1,), weights="bundled")
    absent = BUNDLED[name]._replace(package="no_such_package")
    monkeypatch.setitem(BUNDLED, name, absent)
    with pytest.raises(UserError, match="the package no-such-package is not installed"):
        build_backbone(config)
    monkeypatch.setitem(BUNDLED, name, absent._replace(package="timm", file="__init__.py"))
    with pytest.raises(UserError, match=r"has the SHA-256 .*reinstall the package timm"):
        build_backbone(config)


# Files of torch


def test_a_state_dict_of_torch_is_read_without_running_code(
    full_resnet: torch.nn.Module, weights_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(full_resnet.state_dict(), path)
    assert from_file(path).digest == from_file(weights_file).digest
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(UserError, match="holds more than tensors by name"):
        from_file(path)
    torch.save(torch.nn.Linear(2, 2), path)  # a whole module is code
    with pytest.raises(UserError, match=r"resnet18\.pth is not a readable weights file"):
        from_file(path)
    path.write_bytes(b"\x80garbage")
    with pytest.raises(UserError, match=r"resnet18\.pth is not a readable weights file"):
        from_file(path)

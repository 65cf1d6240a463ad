from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file

from synth.errors import UserError
from synth.features import Backbone, BackboneConfig, build_backbone, seeded_init

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
    with pytest.raises(UserError, match=r"text\.safetensors is not a readable safetensors"):
        from_file(path)


@pytest.mark.parametrize("name", ["resnet81", "resnet18.tv_in2k"])
def test_an_unknown_name_gets_close_matches(name: str) -> None:
    with pytest.raises(UserError, match=rf"got '{name}'.*did you mean .*resnet18"):
        build_backbone(BackboneConfig(name=name, layers=(1,), weights="random"))


def test_an_absent_stride_is_named() -> None:
    config = BackboneConfig(name="vit_tiny_patch16_224", layers=(1,), weights="random")
    with pytest.raises(UserError, match=r"no layer 1 \(stride 4\); its strides are \[16\]"):
        build_backbone(config)


@pytest.mark.parametrize("layers", [(), (2, 1), (1, 1), (0, 1), (5,)])
def test_layers_are_checked(layers: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="ascending order"):
        BackboneConfig(name="resnet18", layers=layers)


def test_without_the_hub_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"'resnet18' could not be downloaded .* safetensors file"):
        build_backbone(BackboneConfig(name="resnet18", layers=(1,)))

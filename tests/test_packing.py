from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detect.methods.realnet import RealNet, RealNetConfig
from detect.methods.realnet.reconstruction import ReconstructionUNet
from detect.packing import PackedConv2d, PackedUpsampling, packed
from synth.base.backbones import BackboneConfig, build_backbone

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="without oneDNN")

CONFIG = RealNetConfig(
    image_size=(32, 48),
    backbone=BackboneConfig(name="resnet10t", layers=(1, 2), weights="random"),
    num_selected=(64, 12),  # all of the first layer
    multipliers=(1, 2),
    num_res_blocks=1,
    num_max=5,
    num_mean=5,
    head_widths=(8, 8, 4, 4),
)


SPREAD = 30


@pytest.fixture(scope="module", params=["resnet10t", "mobilenetv2_100"])
def model(request: pytest.FixtureRequest) -> RealNet:
    """Weights as if trained: nothing at zero, no score at 0 or 1."""
    config = CONFIG
    if request.param != "resnet10t":
        net = BackboneConfig(name=request.param, layers=(1, 2), weights="random")
        config = replace(CONFIG, backbone=net, num_selected=(24, 12), separable=True)
    backbone = build_backbone(config.backbone)
    indices = [
        torch.arange(channels)[-kept:]
        for channels, kept in zip(backbone.channels, config.num_selected, strict=True)
    ]
    model = RealNet(config, backbone, indices)
    rng = torch.Generator().manual_seed(0)
    for part in model.reconstruction.modules():
        if isinstance(part, nn.Conv2d) and not part.weight.any():
            nn.init.normal_(part.weight, std=0.05, generator=rng)
    with torch.no_grad():  # maps that vary, around a half
        last = model.get_parameter("head.classify.2.weight")
        last *= SPREAD
        bias = model.get_parameter("head.classify.2.bias")
        logits = model.predict(images()).maps.logit()
        bias[1] -= logits.mean()
    return model.eval()


def images(count: int = 3, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    coarse = torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=size, mode="bilinear")


def test_in_fp32_only_the_rounding_differs(model: RealNet) -> None:
    fast = packed(model)
    for batch in (images(3), images(1), images(2, (40, 56)), images(3)):
        want, got = model.predict(batch), fast.predict(batch)
        assert (got.image - want.image).abs().max() < 1e-5
        assert (got.maps - want.maps).abs().max() < 1e-5
    assert want.maps.std() > 0.02
    assert 0.1 < want.maps.mean() < 0.9


def test_in_bf16_scores_stay_close_and_float32(model: RealNet) -> None:
    want, got = model.predict(images()), packed(model, "bf16").predict(images())
    assert got.image.dtype == got.maps.dtype == torch.float32
    assert 0 < (got.maps - want.maps).abs().mean() < 0.02  # against a spread of 0.1 and more
    assert (got.image - want.image).abs().max() < 0.03


NETWORKS = {
    "tf_efficientnet_lite0": (2, 3),  # padded as TensorFlow's
    "convnext_atto": (1, 2),  # linear layers between convolutions
    "vit_tiny_patch16_224": (3, 5),
    "regnetx_002": (1, 2),
}


@pytest.mark.parametrize(("name", "layers"), NETWORKS.items())
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_of_every_kind_of_backbone_in_either_precision(name, layers, precision) -> None:
    torch.manual_seed(0)
    network = build_backbone(BackboneConfig(name=name, layers=layers, weights="random")).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        want, got = network(x), packed(nn.Sequential(network), precision)(x)
    for plain, fast in zip(want, got, strict=True):
        error = (fast.float() - plain).abs().mean() / plain.abs().mean()
        assert error < (1e-5 if precision == "fp32" else 0.05)


def test_what_has_no_packed_kind_takes_what_comes_before_it_in_bf16() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding="same"), nn.Conv2d(8, 4, 1),
        nn.Linear(16, 2),
    ).eval()  # fmt: skip
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(packed(network, "bf16")(x), network(x), rtol=0.05, atol=0.05)


def test_packing_leaves_the_detector_as_it_was(model: RealNet) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = [type(part) for part in model.modules()]
    model.train()
    assert not packed(model, "bf16").training
    assert model.training
    model.eval()
    assert [type(part) for part in model.modules()] == parts
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_convolution_is_left_out(model: RealNet) -> None:
    fast = packed(model)
    kinds = {type(part) for part in fast.modules()}
    assert not {nn.Conv2d, nn.ConvTranspose2d} & kinds
    if not model.config.separable:
        assert {PackedConv2d, PackedUpsampling} <= kinds


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 10, 3, stride=2, padding=1),
        nn.Conv2d(6, 6, (3, 5), padding=(1, 2), groups=6, bias=False),
        nn.Conv2d(6, 4, 3, padding=2, dilation=2, groups=2),
        nn.Conv2d(6, 4, 3, padding="same"),
        nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1),
        nn.ConvTranspose2d(6, 8, 2, stride=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(9, 7), (1, 1)])
def test_every_kind_of_convolution_keeps_its_values(conv: nn.Module, size: tuple[int, int]) -> None:
    class One(nn.Sequential):
        pass

    if getattr(conv, "padding_mode", "") == "reflect" and size == (1, 1):
        pytest.skip("torch reflects nothing there")
    x = torch.rand(2, 6, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(packed(One(conv))(x), conv(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_attention_in_bf16_is_the_attention(size: tuple[int, int]) -> None:
    network = ReconstructionUNet(16, 8, (1, 2), 1, head_dim=4).eval()
    rng = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if name.endswith("out.weight"):
            nn.init.normal_(parameter, std=0.3, generator=rng)
    x = torch.randn(2, 16, *size, generator=rng)
    with torch.no_grad():
        want = network(x)
        got = packed(nn.Sequential(network), "bf16")(x).float()
    assert (got - want).abs().max() < 0.03 * want.abs().max()
    assert (got - want).abs().mean() < 0.006 * want.abs().max()

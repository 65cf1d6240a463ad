"""RealNet as its paper and its authors' code have it, written out once more as plain functions.

These read weights by name and share nothing with the modules but the number of groups. Shapes: N
images, C channels on h x w pixels.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detect.detector import Batch
from detect.methods.realnet import RealNet, RealNetConfig
from detect.methods.realnet.reconstruction import group_norm
from synth.base.backbones import BackboneConfig, build_backbone

SIZE, WINDOW = 64, 4  # the paper's window of 16 px at 256 px
CONFIG = RealNetConfig(
    image_size=(SIZE, SIZE),
    backbone=BackboneConfig(name="resnet18", layers=(1, 2), weights="random"),
    num_selected=(16, 24),
    num_max=9,
    num_mean=11,
    head_widths=(12, 8, 6, 4),
)
State = dict[str, Tensor]


def below(state: State, name: str) -> State:
    return {key.removeprefix(name): x for key, x in state.items() if key.startswith(name)}


def conv(x: Tensor, state: State, name: str) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def norm_silu(x: Tensor, state: State, name: str) -> Tensor:
    groups = group_norm(x.shape[1]).num_groups
    normal = F.group_norm(x, groups, state[f"{name}.weight"], state[f"{name}.bias"])
    return normal * normal.sigmoid()


def upsampled(x: Tensor, state: State, name: str) -> Tensor:
    return F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], 2, 1)


def halved(x: Tensor) -> Tensor:
    return x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))


def res_block(x: Tensor, state: State, name: str) -> Tensor:
    skip = conv(x, state, f"{name}.skip") if f"{name}.skip.weight" in state else x
    return skip + conv(norm_silu(x, state, f"{name}.norm"), state, f"{name}.conv")


def down_block(x: Tensor, state: State, name: str) -> Tensor:
    return halved(x) + conv(halved(norm_silu(x, state, f"{name}.norm")), state, f"{name}.conv")


def up_block(x: Tensor, state: State, name: str) -> Tensor:
    y = upsampled(norm_silu(x, state, f"{name}.norm"), state, f"{name}.up")
    return upsampled(x, state, f"{name}.skip_up") + conv(y, state, f"{name}.conv")


def attention(x: Tensor, state: State, name: str) -> Tensor:
    """One head: these networks have fewer than 128 channels."""
    groups = group_norm(x.shape[1]).num_groups
    normal = F.group_norm(x, groups, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])
    q, k, v = conv(normal, state, f"{name}.qkv").flatten(2).chunk(3, dim=1)  # [N, C, h w]
    weights = (torch.einsum("ncs,nct->nst", q, k) / q.shape[1] ** 0.5).softmax(dim=2)
    y = torch.einsum("nst,nct->ncs", weights, v).view_as(x)
    return x + conv(y, state, f"{name}.out")


def unet(x: Tensor, state: State) -> Tensor:
    """Two blocks a level down and three up; attention at half and quarter size."""
    x = conv(x, state, "stem")
    skips = [x]
    number = 0
    for level in range(3):
        if level > 0:
            x = down_block(x, state, f"down.{number}")
            skips.append(x)
            number += 1
        for _ in range(2):
            x = res_block(x, state, f"down.{number}.0")
            x = attention(x, state, f"down.{number}.1") if level > 0 else x
            skips.append(x)
            number += 1
    x = attention(res_block(x, state, "middle.0"), state, "middle.1")
    x = res_block(x, state, "middle.2")
    number = 0
    for level in (2, 1, 0):
        for _ in range(3):
            x = res_block(torch.cat([x, skips.pop()], dim=1), state, f"up.{number}.0")
            x = attention(x, state, f"up.{number}.1") if level > 0 else x
            number += 1
        x = up_block(x, state, f"up.{number - 1}.2") if level > 0 else x
    assert not skips
    return conv(norm_silu(x, state, "out_norm"), state, "out")


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def selected(residual: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """The residual's channels of the highest maxima, then of the highest means."""
    compared = (residual - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
    rows = []
    for image, scores in zip(residual, compared.flatten(2), strict=True):
        by_max = scores.max(1).values.sort(descending=True).indices[: CONFIG.num_max]
        by_mean = scores.mean(1).sort(descending=True).indices[: CONFIG.num_mean]
        rows.append(image[torch.cat([by_max, by_mean])])
    return torch.stack(rows)


def head(x: Tensor, state: State, mean: Tensor | None, var: Tensor | None) -> Tensor:
    """mean, var: of the one batch normalisation; None takes the batch's."""
    for block in ("residual.0", "residual.1"):
        x = x + conv(conv(x.relu(), state, f"{block}.conv3").relu(), state, f"{block}.conv1")
    x = conv(x.relu(), state, "narrow.0")
    mean = x.mean((0, 2, 3)) if mean is None else mean
    var = x.var((0, 2, 3), unbiased=False) if var is None else var
    x = (x - mean.view(-1, 1, 1)) / (var.view(-1, 1, 1) + 1e-5).sqrt()
    x = x * state["narrow.1.weight"].view(-1, 1, 1) + state["narrow.1.bias"].view(-1, 1, 1)
    x = conv(conv(x.relu(), state, "narrow.3").relu(), state, "narrow.5").relu()
    x = resized(x, (2 * x.shape[2], 2 * x.shape[3]))
    x = conv(conv(x, state, "classify.0").relu(), state, "classify.2")
    return resized(x, (SIZE, SIZE))


def residuals(phi: list[Tensor], G: list[Tensor]) -> Tensor:
    finest = (phi[0].shape[2], phi[0].shape[3])
    return torch.cat([resized((p - g) ** 2, finest) for p, g in zip(phi, G, strict=True)], dim=1)


@pytest.fixture
def model() -> RealNet:
    """Weights and statistics all different from zero and one."""
    indices = [torch.arange(0, 64, 4), torch.arange(3, 123, 5)]
    model = RealNet(CONFIG, build_backbone(CONFIG.backbone), indices)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (model.reconstruction, model.rrs, model.head):
            for name, x in part.state_dict().items():
                if name.endswith("var"):
                    x.copy_(torch.rand(x.shape, generator=rng) + 0.5)
                elif x.is_floating_point():
                    scale = max(x[0].numel(), 1) ** -0.5 if x.dim() == 4 else 0.3
                    x.copy_(torch.randn(x.shape, generator=rng) * scale)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def reconstructed(model: RealNet, phi: list[Tensor]) -> list[Tensor]:
    return [
        unet(x, dict(network.state_dict()))
        for x, network in zip(phi, model.reconstruction, strict=True)
    ]


def test_scores_and_maps_are_those_of_the_equations(model: RealNet, images: Tensor) -> None:
    found = model.predict(images)
    with torch.no_grad():
        phi = model.features(images)
        state = dict(model.state_dict())
        norm = below(state, "rrs.norm.")
        E = selected(
            residuals(phi, reconstructed(model, phi)), norm["running_mean"], norm["running_var"]
        )
        own = below(state, "head.")
        logits = head(E, own, own["narrow.1.running_mean"], own["narrow.1.running_var"])
        maps = 1 / (1 + (logits[:, 0] - logits[:, 1]).exp())
        windows = maps.unfold(1, WINDOW, 1).unfold(2, WINDOW, 1).mean((-1, -2))
    assert maps.std() > 0.01
    torch.testing.assert_close(found.maps, maps, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.image, windows.amax((1, 2)), rtol=1e-3, atol=1e-5)


def test_losses_are_those_of_the_equations(model: RealNet, images: Tensor) -> None:
    normal = images.flip(0)
    mask = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    mask[:, 10:30, 20:40] = True
    image = torch.where(mask.unsqueeze(1), images, normal)
    model.train()
    with torch.no_grad():
        phi_A, phi_I = model.features(image), model.features(normal)
        state = dict(model.state_dict())
        G = reconstructed(model, phi_A)
        E = residuals(phi_A, G)
        E = selected(E, E.mean((0, 2, 3)), E.var((0, 2, 3), unbiased=False))
        logits = head(E, below(state, "head."), None, None)
        margins = torch.where(mask, logits[:, 0] - logits[:, 1], logits[:, 1] - logits[:, 0])
        segmentation = (1 + margins.exp()).log().mean()
        reconstruction = sum(((g - p) ** 2).mean() for g, p in zip(G, phi_I, strict=True))
        found = model.losses(Batch(image, normal, mask))
    torch.testing.assert_close(found["segmentation"], segmentation, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["reconstruction"], reconstruction, rtol=1e-4, atol=1e-6)

"""Local-Net: a small network that describes one patch, distilled from a large one.

Shapes: N images of H x W pixels; p x p pixels of a patch; n numbers describe it.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.005
"""Of the leaky ReLUs. Source: Uninformed Students (Bergmann et al., CVPR 2020)."""


class Conv(NamedTuple):
    """A convolution without padding; width None is n, the descriptor's."""

    kernel: int
    width: int | None


POOL = "pool"
"""The larger of two neighbours along each axis, at half the resolution."""

LAYERS: dict[int, Sequence[Conv | str]] = {
    17: (Conv(6, 128), Conv(5, 256), Conv(5, 256), Conv(4, None)),
    33: (Conv(3, 128), POOL, Conv(5, 256), POOL, Conv(2, 256), Conv(4, None)),
    65: (Conv(5, 128), POOL, Conv(5, 128), POOL, Conv(5, 128), POOL, Conv(4, 256), Conv(1, None)),
}
"""By patch size in pixels. Source: Uninformed Students, appendix, for lack of the paper's own."""


class ReceptiveField(NamedTuple):
    """What a cell of the dense map sees: `size` pixels along each axis, `stride` pixels apart."""

    size: int
    stride: int


def receptive_field(patch: int) -> ReceptiveField:
    """The pixels that a descriptor depends on; pooling drops the last ones of a patch."""
    size, stride = 1, 1
    for layer in LAYERS[patch]:
        if isinstance(layer, Conv):
            size += (layer.kernel - 1) * stride
        else:
            size, stride = size + stride, 2 * stride
    return ReceptiveField(size, stride)


class LocalNet(nn.Module):
    """L: describe every patch of an image in one pass, exactly as each would be by itself."""

    def __init__(self, patch: int, num_features: int, teacher_channels: int) -> None:
        """patch: a key of LAYERS; teacher_channels: numbers that the teacher describes one with."""
        super().__init__()
        steps: list[nn.Module] = []
        channels = 3
        for layer in LAYERS[patch]:
            if isinstance(layer, Conv):
                width = layer.width or num_features
                steps += [
                    nn.Conv2d(channels, width, layer.kernel),
                    nn.LeakyReLU(SLOPE, inplace=True),
                ]
                channels = width
            else:
                steps.append(nn.MaxPool2d(2))
        self.net = nn.Sequential(*steps[:-1])  # no activation after the last convolution
        for step in self.net:
            if isinstance(step, nn.Conv2d):
                # torch's own start halves signals layer by layer; nothing here normalises them.
                nn.init.kaiming_normal_(step.weight, a=SLOPE)
                nn.init.zeros_(cast(nn.Parameter, step.bias))
        self.decoder = nn.Linear(num_features, teacher_channels)  # D
        self.field = receptive_field(patch)

    def forward(self, images: Tensor) -> Tensor:
        """Z_l of all patches at the network's own stride, float32 [N, n, h, w].

        images: float32 [N, 3, H, W], normalised. Cell (i, j) sees the field whose upper left pixel
        is (i stride, j stride).
        """
        return self.net(images).float()


def distillation(decoded: Tensor, target: Tensor) -> Tensor:
    """l_k = |D(L(p)) - R(p)|^2, mean over patches and the teacher's numbers: [B, T] each."""
    return F.mse_loss(decoded, target)


def compactness(features: Tensor) -> Tensor:
    """l_c: mean of |correlation| between different numbers over a batch of patches, [B, n].

    0 where none can be told from the others. Source: Uninformed Students, Eq. 4.
    """
    centred = features - features.mean(0)
    unit = centred / centred.norm(dim=0).clamp(min=1e-6)
    correlation = unit.T @ unit
    off_diagonal = correlation - torch.diag(correlation.diagonal())
    return off_diagonal.abs().mean()

"""Global-Net: describe a patch by what surrounds it, with partial convolutions that skip the patch.

Shapes: N images of H x W pixels; n numbers describe a patch; masks are 1 where pixels are visible.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256)
"""Channels of the residual stages, two blocks each; strides 4, 8, 8 over the image."""
REACH_PX = 88
"""How far beyond a hole the pixels lie, at most, that what is told of its patches depends on: half
the receptive field, 81, and the cells around a patch's own, less the patch's half."""


class Visible(NamedTuple):
    """features: [N, C, h, w], 0 where nothing is seen; mask: [N, 1, h, w], of 0 and 1."""

    features: Tensor
    mask: Tensor


class PartialConv(nn.Module):
    """x' = W (X * M) sum(1) / sum(M) + b where anything is visible, else 0; M' = [sum(M) > 0].

    sum(1) counts pixels inside the image, so that a full mask gives an ordinary convolution up to
    the borders. Source: Liu et al., ECCV 2018, Eqs. 1 and 2.
    """

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.shape = (kernel, stride, kernel // 2)
        self.conv = nn.Conv2d(channels, width, *self.shape, bias=False)  # packed for scoring
        # torch's own start: from 0, three products out of three came out worse (one seed).
        bound = (channels * kernel**2) ** -0.5
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))
        nn.init.kaiming_normal_(self.conv.weight)

    def visible(self, seen: Visible) -> Visible:
        """Convolve features that are 0 where nothing is visible; the mask may be one for all."""
        kernel = self.shape[0]
        share = F.avg_pool2d(seen.mask, *self.shape, count_include_pad=False)
        mask = (share > 0.5 / kernel**2).to(share.dtype)
        scale = mask / share.clamp(min=0.5 / kernel**2)  # sum(1) / sum(M)
        out = (self.conv(seen.features) * scale).addcmul_(self.bias.view(1, -1, 1, 1), mask)
        return Visible(out, mask)


class Block(nn.Module):
    """A residual block of two partial convolutions, as ResNet-18's, without normalisation.

    Ours: a normalisation would mix images, processes or the two sides of a hole; without it a
    patch depends on nothing beyond the receptive field around it, and a crop serves as well. The
    second convolution starts at 0 instead, so that every block starts as its skip.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = PartialConv(channels, width, 3, stride)
        self.conv2 = PartialConv(width, width, 3)
        nn.init.zeros_(self.conv2.conv.weight)
        self.skip = None
        if stride > 1 or channels != width:
            self.skip = PartialConv(channels, width, 1, stride)

    def visible(self, seen: Visible) -> Visible:
        """Transform features and mask together."""
        inner = self.conv1.visible(seen)
        inner = self.conv2.visible(Visible(inner.features.relu_(), inner.mask))
        skip = seen if self.skip is None else self.skip.visible(seen)
        return Visible(inner.features.add_(skip.features).relu_(), inner.mask)


class GlobalNet(nn.Module):
    """A ResNet-18-shaped trunk of partial convolutions, at stride 8, and its readout."""

    stride = 8

    def __init__(self, num_features: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.stem = PartialConv(3, widths[0], 7, 2)
        blocks, channels = [], widths[0]
        for width, stride in zip(widths, (1, 2, 1), strict=True):
            blocks += [Block(channels, width, stride), Block(width, width, 1)]
            channels = width
        self.blocks = nn.ModuleList(blocks)
        self.readout = nn.Conv2d(channels, num_features, 1)

    def forward(self, images: Tensor, mask: Tensor) -> Visible:
        """Describe the surroundings: images [N, 3, H, W] -> [N, n, H/8, W/8].

        mask: [N, 1, H, W], or [1, 1, H, W] where it is the same for all.
        """
        seen = self.stem.visible(Visible(images * mask, mask))
        features = F.max_pool2d(seen.features.relu_(), 3, 2, 1)
        seen = Visible(features, F.max_pool2d(seen.mask, 3, 2, 1))
        for block in self.blocks:
            seen = cast(Block, block).visible(seen)
        return Visible(self.readout(seen.features) * seen.mask, seen.mask)


def around(seen: Visible, centres: Tensor, reach: int = 1) -> Tensor:
    """Z_g: the mean of the visible cells around a patch, float32 [N, K, n].

    centres: int64 [K, 2], row and column of the cell at each patch's centre; reach: cells on each
    side. Cells that see nothing do not count; where no cell does, Z_g is 0.
    """
    side = 2 * reach + 1
    sums = F.avg_pool2d(seen.features.float() * seen.mask, side, 1, reach)
    counts = F.avg_pool2d(seen.mask.float(), side, 1, reach)
    means = sums / counts.clamp(min=1e-6)
    rows, columns = centres.T
    return means[:, :, rows, columns].movedim(1, -1)

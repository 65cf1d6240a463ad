"""A reconstruction network for processors without a GPU: the U-Net of depthwise convolutions.

The paper's networks G_k hold nearly all of RealNet's parameters. Here a level's 3 x 3 convolution
sees each channel alone and a 1 x 1 convolution mixes them (Howard et al., MobileNets, 2017),
nothing attends, and resizing has no weights.
Shapes: N images, m feature channels in and out, C channels inside, h x w pixels.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detect.methods.realnet.reconstruction import group_norm, padded


class SeparableBlock(nn.Module):
    """x -> skip(x) + conv1(SiLU(norm(depthwise3(x))))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels)
        self.norm = group_norm(in_channels)
        self.mix = nn.Conv2d(in_channels, out_channels, 1)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C_in, h, w] to [N, C_out, h, w]."""
        return self.skip(x) + self.mix(F.silu(self.norm(self.depthwise(x))))


class SeparableUNet(nn.Module):
    """G_k in small: one skip per level, averages on the way down, bilinear on the way up.

    channels: m. width: channels of the first level; multipliers: of each level over `width`; each
    level halves the size. The output layer starts at zero, as the paper's does.
    """

    def __init__(
        self, channels: int, width: int, multipliers: tuple[int, ...], num_res_blocks: int
    ) -> None:
        super().__init__()
        widths = [width * multiplier for multiplier in multipliers]
        self.factor = 2 ** (len(widths) - 1)
        self.stem = nn.Conv2d(channels, width, 1)
        self.down = nn.ModuleList(
            _level(a, b, num_res_blocks) for a, b in pairwise([width, *widths])
        )
        self.up = nn.ModuleList(
            _level(below + here, here, num_res_blocks) for here, below in pairwise(widths)
        )
        self.out = nn.Conv2d(width * multipliers[0], channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Tensor) -> Tensor:
        """Map features [N, m, h, w] to a reconstruction of the same shape, whatever h and w.

        Sizes that the levels do not divide are padded at the right and bottom and cut back.
        """
        h, w = features.shape[-2:]
        x = self.stem(padded(features, self.factor))
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        x = skips.pop()
        for block in reversed(self.up):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skips.pop()], dim=1))
        return self.out(x)[..., :h, :w]


def _level(in_channels: int, out_channels: int, num_blocks: int) -> nn.Sequential:
    widths = [in_channels] + [out_channels] * num_blocks
    return nn.Sequential(*(SeparableBlock(a, b) for a, b in pairwise(widths)))

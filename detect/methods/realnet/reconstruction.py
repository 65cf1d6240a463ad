"""The reconstruction networks G_k: from the features of a blended image to those of the normal one.

A diffusion-style U-Net without time embedding. Source: RealNet, multi-scale feature reconstruction.
Shapes: N images, m feature channels in and out, C channels inside, h x w pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm of 32 groups, or fewer where they would have less than 4 channels each.

    The authors' narrowest level has 4. Groups of one channel would erase every channel's level.
    """
    return nn.GroupNorm(math.gcd(32, channels // 4, channels), channels)


class ResBlock(nn.Module):
    """x -> skip(x) + conv3(SiLU(norm(x))), both branches resampled first where asked."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = group_norm(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C_in, h, w] to [N, C_out, h, w]."""
        return self.skip(x) + self.conv(F.silu(self.norm(x)))


class ResBlockDown(nn.Module):
    """A residual block at half the size: both branches are average-pooled 2 x 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, h, w] to [N, C, h/2, w/2]."""
        return F.avg_pool2d(x, 2) + self.conv(F.avg_pool2d(F.silu(self.norm(x)), 2))


class ResBlockUp(nn.Module):
    """A residual block at twice the size: each branch has its own learned 4 x 4 upsampling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.up = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
        self.skip_up = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, h, w] to [N, C, 2h, 2w]."""
        return self.skip_up(x) + self.conv(self.up(F.silu(self.norm(x))))


class SelfAttention(nn.Module):
    """Residual self-attention over all pixels; starts as the identity."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        wanted = max(1, channels // head_dim)
        self.num_heads = next(n for n in range(wanted, 0, -1) if channels % n == 0)
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, h, w] to the same shape."""
        N, C, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(N, 3, self.num_heads, C // self.num_heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)  # each [N, heads, h*w, C/heads]
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(-1, -2).reshape(N, C, h, w))


class ReconstructionUNet(nn.Module):
    """G_k, a U-Net whose input and output are m feature channels.

    Attention sits at every factor but the first, and in the middle. The output layer starts at
    zero. m = 256, width 128 gives 51 846 144 parameters; m = 512, width 256 gives 207 271 936.

    channels: m. width: channels of the first level, m / 2 by default.
    multipliers: width of each level over `width`; each level halves the size.
    norm_groups: of every group norm; None is that of `group_norm`.
    """

    def __init__(
        self,
        channels: int,
        width: int | None = None,
        multipliers: tuple[int, ...] = (1, 2, 4),
        num_res_blocks: int = 2,
        head_dim: int = 64,
        norm_groups: int | None = None,
    ) -> None:
        super().__init__()
        width = channels // 2 if width is None else width
        widths = [width * multiplier for multiplier in multipliers]
        self.factor = 2 ** (len(widths) - 1)

        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, skip_widths = _encoder(widths, num_res_blocks, head_dim)
        bottom = widths[-1]
        self.middle = nn.Sequential(
            ResBlock(bottom, bottom), SelfAttention(bottom, head_dim), ResBlock(bottom, bottom)
        )
        self.up = _decoder(widths, skip_widths, num_res_blocks, head_dim)
        self.out_norm = group_norm(width)
        self.out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]
        for norm in self.modules():
            if norm_groups is not None and isinstance(norm, nn.GroupNorm):
                norm.num_groups = norm_groups

    def forward(self, features: Tensor) -> Tensor:
        """Map features [N, m, h, w] to a reconstruction of the same shape, whatever h and w.

        Sizes that the levels do not divide are padded at the right and bottom and cut back.
        """
        h, w = features.shape[-2:]
        x = self.stem(padded(features, self.factor))
        skips = [x]
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = self.middle(x)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], dim=1))
        return self.out(F.silu(self.out_norm(x)))[..., :h, :w]


def padded(features: Tensor, factor: int) -> Tensor:
    """Pad features [N, m, h, w] at the right and bottom to sides that `factor` divides."""
    h, w = features.shape[-2:]
    pad_h, pad_w = -h % factor, -w % factor
    return F.pad(features, (0, pad_w, 0, pad_h), mode="replicate") if pad_h or pad_w else features


def _encoder(
    widths: list[int], num_res_blocks: int, head_dim: int
) -> tuple[nn.ModuleList, list[int]]:
    """Return the blocks on the way down, and the width of every skip (the stem's is the first)."""
    blocks: list[nn.Module] = []
    skip_widths = [widths[0]]
    for level, width in enumerate(widths):
        if level > 0:
            blocks.append(ResBlockDown(skip_widths[-1]))
            skip_widths.append(skip_widths[-1])
        for _ in range(num_res_blocks):
            blocks.append(_res_block(skip_widths[-1], width, level, head_dim))
            skip_widths.append(width)
    return nn.ModuleList(blocks), skip_widths


def _decoder(
    widths: list[int], skip_widths: list[int], num_res_blocks: int, head_dim: int
) -> nn.ModuleList:
    """Return the blocks on the way up; each takes the features and one skip, the last one first."""
    blocks: list[nn.Module] = []
    remaining = list(skip_widths)
    current = widths[-1]
    for level, width in reversed(list(enumerate(widths))):
        for index in range(num_res_blocks + 1):
            block = _res_block(current + remaining.pop(), width, level, head_dim)
            current = width
            if level > 0 and index == num_res_blocks:
                block.append(ResBlockUp(width))
            blocks.append(block)
    return nn.ModuleList(blocks)


def _res_block(in_channels: int, out_channels: int, level: int, head_dim: int) -> nn.Sequential:
    block = nn.Sequential(ResBlock(in_channels, out_channels))
    if level > 0:
        block.append(SelfAttention(out_channels, head_dim))
    return block

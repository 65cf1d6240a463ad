"""Blocks of backbone layers that are reconstructed together (RealNet's "architecture C").

Shapes: N images, layer k has C_k channels on h_k x w_k pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def aligned(maps: Sequence[Tensor], blocks: Sequence[Sequence[int]]) -> list[Tensor]:
    """Bring the layers of each block to the size of its first one; single layers stay as they are.

    maps: [N, C_k, h_k, w_k] per layer, in the order of the blocks. Bilinear, corners aligned.
    """
    sized = []
    remaining = iter(maps)
    for block in blocks:
        first, *others = (next(remaining) for _ in block)
        size = first.shape[-2:]
        resized = [F.interpolate(x, size, mode="bilinear", align_corners=True) for x in others]
        sized += [first, *resized]
    return sized


def joined_blocks(maps: Sequence[Tensor], blocks: Sequence[Sequence[int]]) -> list[Tensor]:
    """One map per block: its layers, `aligned`, as channels one after the other."""
    remaining = iter(aligned(maps, blocks))
    layers = [[next(remaining) for _ in block] for block in blocks]
    return [torch.cat(block, dim=1) if len(block) > 1 else block[0] for block in layers]

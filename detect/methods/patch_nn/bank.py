"""The bank of normal patches that `PatchNN` compares with.

Shapes: N images of H x W pixels; C channels; B patches kept of M candidates.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from detect.methods.patch_nn.model import PatchNNConfig, patches
from detect.training.data import to_chw, to_unit
from synth.base.backbones import Backbone
from synth.base.seeding import derive_seed, generator
from synth.pictures import Images

BATCH_SIZE = 16
MAX_CANDIDATES = 100_000
"""Random patches that a coreset is chosen from; all of them would take hours."""
PROJECTED = 128
"""Channels that distances between candidates are taken in. Source: PatchCore, section 3.2."""


def build_bank(
    backbone: Backbone,
    images: Images,
    config: PatchNNConfig,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Choose patches of normal images, uint8 [N, H, W, 3]: float32 [B, C].

    Never more than are kept, or than MAX_CANDIDATES, are in memory.
    """
    wanted = config.bank_size if config.choice == "random" else MAX_CANDIDATES
    kept: list[Tensor] = []
    chosen = np.empty(0, np.int64)
    for start, cells in all_patches(backbone, images, device):
        if start == 0:
            total = len(images) * len(cells[0])
            rng = np.random.default_rng(derive_seed(config.seed, 0))
            chosen = np.sort(rng.permutation(total)[:wanted])
        first, flat = start * len(cells[0]), cells.flatten(0, 1)
        inside = chosen[(chosen >= first) & (chosen < first + len(flat))] - first
        kept.append(flat[torch.from_numpy(inside).to(device)])
        if progress is not None:
            progress(start + len(cells), len(images))
    bank = torch.cat(kept)
    if config.choice == "coreset" and len(bank) > config.bank_size:
        bank = bank[coreset(bank, config.bank_size, config.seed)]
        if progress is not None:
            progress(len(images), len(images))  # the choice takes time, too
    return bank


def all_patches(
    backbone: Backbone, images: Images, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of a batch's first image and its patches, float32 [n, h w, C]."""
    for start in range(0, len(images), BATCH_SIZE):
        batch = torch.stack([to_chw(image) for image in images[start : start + BATCH_SIZE]])
        unit = to_unit(batch.to(device))
        yield start, patches(backbone, unit).flatten(1, 2)


def coreset(candidates: Tensor, count: int, seed: int) -> Tensor:
    """Choose greedily the candidate farthest from all chosen ones: int64 [count] of [M, C].

    Source: PatchCore, Eq. 5 and algorithm 1; at most twice the radius of the best choice (k-centre)
    in the projected space. The first is the one farthest from the mean.
    """
    device = candidates.device
    C = candidates.shape[1]
    projected = candidates - candidates.mean(0)
    if C > PROJECTED:
        directions = torch.randn(C, PROJECTED, generator=generator(seed, 1)).to(device)
        projected = projected @ directions / PROJECTED**0.5
    norms = projected.square().sum(1)
    distances = torch.full_like(norms, torch.inf)
    order = [norms.argmax()]
    for _ in range(count - 1):
        last = order[-1]  # |x - c|^2 = |x|^2 - 2 x.c + |c|^2
        to_last = torch.addmv(norms + norms[last], projected, projected[last], alpha=-2)
        distances = torch.minimum(distances, to_last)
        order.append(distances.argmax())
    return torch.stack(order)

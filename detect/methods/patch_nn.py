"""Patch nearest neighbour: the baseline that needs no anomalies and no optimiser.

Source: PatchCore (Roth et al., CVPR 2022), Eqs. 1-5, without its re-weighted image score: images
are scored by the rule of all our detectors (`detect.pooling`).
Shapes: N images of H x W pixels; h x w cells of layer 2; C channels of layers 2 and 3 together; a
bank of B patches, chosen from M candidates.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from detect.config import DetectorConfig
from detect.data.material import Material
from detect.detector import Detector, Scores
from detect.images import to_chw, to_unit
from detect.method import Recipe
from detect.pooling import image_scores
from synth.base.backbones import DEFAULT_BACKBONE, Backbone, BackboneConfig, build_backbone
from synth.base.seeding import derive_seed, generator

Choice = Literal["random", "coreset"]

CHUNK = 1 << 22
"""Distances computed at once: 16 MiB of float32. malloc gives blocks of 32 MiB or more back to the
system each time, which makes the product of a whole image half again as slow."""
GROUP = 100
"""Distances whose smallest is found together."""
BLUR_PX = 4.0
"""Standard deviation of the map's blur at 256 px. Source: PatchCore, section 3.3."""
BATCH_SIZE = 16
MAX_CANDIDATES = 100_000
"""Random patches that a coreset is chosen from; all of them would take hours."""
PROJECTED = 128
"""Channels in which candidates are compared. Source: PatchCore, section 3.2."""


@dataclass(frozen=True, kw_only=True)
class PatchNNConfig(DetectorConfig):
    """Everything that defines the detector, but for the data."""

    bank_size: int = 10_000
    """Patches of normal images to compare with, at most."""
    choice: Choice = "random"
    """random: any patches; coreset: greedily the one farthest from those chosen so far."""

    @property
    def extent(self) -> str:
        """How many patches, chosen how."""
        return f"{self.choice} bank of up to {self.bank_size:,} patches"


class PatchNN(Detector):
    """The distance of every cell's patch to the nearest patch of normal images."""

    def __init__(self, config: PatchNNConfig, backbone: Backbone, bank: Tensor) -> None:
        """Build with a bank of normal patches, float32 [B, C]."""
        super().__init__()
        self.config, self.backbone = config, backbone
        self.bank: Tensor
        self.register_buffer("bank", bank.clone())

    @classmethod
    def from_state(cls, config: PatchNNConfig, state: Mapping[str, Tensor]) -> Self:
        """Rebuild a saved model from its own state alone, strictly.

        Raises UserError when the state does not belong to the configuration.
        """
        backbone = build_backbone(replace(config.backbone, weights="random"))
        return cls(config, backbone, torch.zeros_like(state["bank"])).with_state(state)

    @property
    def facts(self) -> str:
        """How many patches it compares with."""
        num, channels = self.bank.shape
        return f"{num:,} patches of {channels} channels ({self.config.choice}), nothing trained"

    def forward(self, images: Tensor) -> Scores:
        """Score images float32 [N, 3, H, W], RGB in [0, 1]; maps are distances, 0 or more."""
        N, _, H, W = images.shape
        cells = patches(self.backbone, images)  # [N, h, w, C]
        h, w = cells.shape[1:3]
        distances = nearest_distances(cells.flatten(0, 2), self.bank).view(N, 1, h, w)
        maps = F.interpolate(distances, size=(H, W), mode="bilinear", align_corners=False)
        maps = blurred(maps, BLUR_PX * min(H, W) / 256)[:, 0]
        return Scores(image_scores(maps), maps)


# Patches


@torch.no_grad()
def patches(backbone: Backbone, images: Tensor) -> Tensor:
    """Describe each cell of the finest layer by its 3 x 3 neighbourhood in all layers.

    images: float32 [N, 3, H, W], RGB in [0, 1]. Returns float32 [N, h, w, C].
    """
    first, *others = (F.avg_pool2d(x.float(), 3, 1, 1) for x in backbone(images))
    size = first.shape[-2:]
    layers = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in others]
    return torch.cat([first, *layers], dim=1).movedim(1, -1)


def nearest_patches(
    queries: Tensor, bank: Tensor, asking: Tensor | None = None, owners: Tensor | None = None
) -> Tensor:
    """Return which patch is nearest to every query: [Q, C], [B, C] -> int64 [Q].

    Exact: every pair is compared, in chunks. |q - b|^2 = |q|^2 - 2 q.b + |b|^2 finds the nearest
    patch but cancels near 0: distances are to be computed from the patch itself. asking, owners:
    int64 [Q] and [B]; patches of the one who asks are left out.
    """
    norms = bank.square().sum(1)
    rows = max(1, CHUNK // len(bank))
    exporting = torch.compiler.is_exporting()  # a graph for any N has no number of chunks
    parts = []
    for start, chunk in enumerate([queries] if exporting else queries.split(rows)):
        compared = torch.addmm(norms, chunk, bank.T, alpha=-2)
        if asking is not None and owners is not None:
            own = asking[start * rows : (start + 1) * rows, None] == owners
            compared = compared.masked_fill(own, torch.inf)
        parts.append(compared.argmin(1) if exporting else smallest(compared))
    return torch.cat(parts)


def smallest(rows: Tensor) -> Tensor:
    """Return `rows.argmin(1)` in a third of its time: [Q, B] -> int64 [Q].

    torch's argmin compares one by one, its amin several at once: it finds the group first.
    """
    if rows.shape[1] % GROUP:
        return rows.argmin(1)
    groups = rows.unflatten(1, (-1, GROUP))
    best = groups.amin(2).argmin(1, keepdim=True)
    inside = groups.take_along_dim(best.unsqueeze(2), 1).argmin(2)
    return (best * GROUP + inside).squeeze(1)


def nearest_distances(queries: Tensor, bank: Tensor) -> Tensor:
    """Euclidean distance of every query to its nearest patch: [Q, C], [B, C] -> [Q]."""
    return (queries - bank[nearest_patches(queries, bank)]).square().sum(1).sqrt()


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of maps [N, 1, H, W], the edges mirrored."""
    H, W = maps.shape[-2:]
    reach = min(round(4 * sigma), H - 1, W - 1)
    x = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    padded = F.pad(maps, [reach] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


# The bank


def build_bank(
    backbone: Backbone,
    images: Sequence[NDArray[np.uint8]],
    config: PatchNNConfig,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose patches of normal images, each uint8 [H, W, 3]: float32 [B, C], and whose: int64 [B].

    No more than are kept, or than MAX_CANDIDATES, are in memory at once.
    """
    wanted = config.bank_size if config.choice == "random" else MAX_CANDIDATES
    kept: list[Tensor] = []
    chosen, cells_each = np.empty(0, np.int64), 0
    for start, cells in all_patches(backbone, images, device):
        if start == 0:
            cells_each = len(cells[0])
            total = len(images) * cells_each
            rng = np.random.default_rng(derive_seed(config.seed, 0))
            chosen = np.sort(rng.permutation(total)[:wanted])
        first, flat = start * cells_each, cells.flatten(0, 1)
        inside = chosen[(chosen >= first) & (chosen < first + len(flat))] - first
        kept.append(flat[torch.from_numpy(inside).to(device)])
        if progress is not None:
            progress(start + len(cells), len(images))
    bank, owners = torch.cat(kept), torch.from_numpy(chosen // cells_each).to(device)
    if config.choice == "coreset" and len(bank) > config.bank_size:
        best = coreset(bank, config.bank_size, config.seed)
        bank, owners = bank[best], owners[best]
        if progress is not None:
            progress(len(images), len(images))  # the choice takes time too
    return bank, owners


def all_patches(
    backbone: Backbone, images: Sequence[NDArray[np.uint8]], device: torch.device
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


# The method

_SMALL = PatchNNConfig(image_size=(256, 256), backbone=replace(DEFAULT_BACKBONE, layers=(2, 3)))
_PAPER = BackboneConfig(name="wide_resnet50_2.racm_in1k", layers=(2, 3))
PRESETS = {
    "tiny": replace(_SMALL, image_size=(128, 128)),
    "compact": _SMALL,
    "small": _SMALL,
    "paper": replace(_SMALL, backbone=_PAPER),
}


def build_patch_nn(
    config: PatchNNConfig, material: Material[Any], backbone: Backbone | None = None
) -> PatchNN:
    """Fill the bank from all images to train on; backbone: None is the material's."""
    images = [*chain.from_iterable(material.images)]
    device, network = material.accelerator.device, backbone or material.backbone
    with material.bars("filling the bank", "image") as update:
        bank, _ = build_bank(network, images, config, device, update)
    return PatchNN(config, network, bank)


RANDOM = Recipe(
    config=PatchNNConfig, presets=PRESETS, build=build_patch_nn, restore=PatchNN.from_state
)
CORESET = replace(
    RANDOM, presets={name: replace(each, choice="coreset") for name, each in PRESETS.items()}
)

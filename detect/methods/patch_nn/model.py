"""Patch nearest neighbour: the baseline that needs no anomalies and no optimiser.

Source: PatchCore (Roth et al., CVPR 2022), Eqs. 1-5, without its re-weighted image score: images
are scored by the rule of all our detectors (`detect.pooling`).
Shapes: N images of H x W pixels; h x w cells of layer 2; C channels of layers 2 and 3 together; a
bank of B patches.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from detect.detector import Detector, Scores
from detect.pooling import image_scores
from synth.base.backbones import Backbone, BackboneConfig, build_backbone

Choice = Literal["random", "coreset"]

LAYERS = (2, 3)
CHUNK = 1 << 24
"""Distances computed at once: 64 MiB of float32."""
BLUR_PX = 4.0
"""Standard deviation of the map's blur at 256 px. Source: PatchCore, section 3.3."""


@dataclass(frozen=True, kw_only=True)
class PatchNNConfig:
    """Everything that defines the detector, but for the data."""

    image_size: tuple[int, int]
    """Height and width in pixels that images are resized to."""
    backbone: BackboneConfig
    """The frozen feature extractor."""
    bank_size: int = 10_000
    """Patches of normal images to compare with, at most."""
    choice: Choice = "random"
    """random: any patches; coreset: greedily the one farthest from those chosen so far."""
    seed: int = 0
    """Of the choice."""

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "PatchNNConfig":
        """Return the configuration that `to_json` wrote. Raises TypeError for unknown fields."""
        values = {key: _tupled(value) for key, value in data.items() if key != "num_steps"}
        backbone = {key: _tupled(value) for key, value in values["backbone"].items()}
        values["backbone"] = BackboneConfig(**backbone)
        return PatchNNConfig(**values)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


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


def nearest_distances(queries: Tensor, bank: Tensor) -> Tensor:
    """Euclidean distance of every query to its nearest patch: [Q, C], [B, C] -> [Q].

    Exact: every pair is looked at, in chunks. |q - b|^2 = |q|^2 - 2 q.b + |b|^2 finds the nearest,
    but cancels near 0; the distance to it is then taken directly.
    """
    norms = bank.square().sum(1)
    rows = max(1, CHUNK // len(bank))
    parts = []
    for chunk in queries.split(rows):
        nearest = torch.addmm(norms, chunk, bank.T, alpha=-2).argmin(1)
        parts.append((chunk - bank[nearest]).square().sum(1).sqrt())
    return torch.cat(parts)


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of maps [N, 1, H, W], the edges mirrored."""
    H, W = maps.shape[-2:]
    reach = min(round(4 * sigma), H - 1, W - 1)
    x = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    weights = torch.exp(-(x**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    padded = F.pad(maps, [reach] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))

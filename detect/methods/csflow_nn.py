"""CS-Flow beside the nearest normal patch: both rank an image, the patches mark its defects.

A flow knows how likely an image's features are together and marks regions coarsely; the distance to
the nearest normal patch (PatchCore, Roth et al., CVPR 2022) marks them well and sees one cell at a
time. The image score is the sum of both, each in spreads of held-out normal images.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detect.config import require_fields_positive
from detect.data.material import Material
from detect.detector import Scores
from detect.method import Recipe
from detect.methods.csflow import PRESETS as CSFLOW_PRESETS
from detect.methods.csflow import CSFlowConfig
from detect.methods.flow_detector import FlowDetector, prepared_flow
from detect.methods.patch_nn import PatchNN, PatchNNConfig, build_patch_nn
from synth.base.backbones import Backbone, build_backbone

LEAST = 1e-3
"""Of a spread, and of a spread over the median: held-out images may have equal scores."""


@dataclass(frozen=True, kw_only=True)
class CSFlowNNConfig(CSFlowConfig):
    """A CS-Flow, its training, and the bank of patches beside it."""

    bank_size: int = 10_000
    """Patches of normal images to compare with, at most."""
    bank_layers: tuple[int | str, ...] = (2, 3)
    """Layers of the backbone that describe a patch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fields_positive(bank_size=self.bank_size)

    @property
    def nearest(self) -> PatchNNConfig:
        """The bank, of the same backbone."""
        return PatchNNConfig(
            image_size=self.image_size,
            backbone=replace(self.backbone, layers=self.bank_layers),
            seed=self.seed,
            bank_size=self.bank_size,
            choice="coreset",
        )


class CSFlowNN(FlowDetector):
    """The flow is trained; `nearest` has its bank from the beginning.

    usual: float32 [2, 2], median and spread of held-out normal images, by the flow and by patches.
    """

    def __init__(self, config: CSFlowNNConfig, backbone: Backbone, nearest: PatchNN) -> None:
        super().__init__(config, backbone)
        self.nearest = nearest
        self.usual: Tensor
        self.register_buffer("usual", torch.tensor([[0.0, 0.0], [1.0, 1.0]]))

    @property
    def facts(self) -> str:
        """How many patches, and how large the flow is."""
        return f"{len(self.nearest.bank):,} normal patches, {super().facts}"

    def forward(self, images: Tensor) -> Scores:
        """Score images float32 [N, 3, H, W], RGB in [0, 1]; maps are the patches', distances.

        A score of 0 is that of a usual normal image.
        """
        scores, maps = self.parents(images)
        medians, spreads = self.usual
        return Scores(((scores - medians) / spreads).sum(1), maps)

    def parents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores of flow and patches, float32 [N, 2], and the patches' maps."""
        likelihood, distance = super().forward(images), self.nearest(images)
        return torch.stack([likelihood.image, distance.image], dim=1), distance.maps

    @torch.no_grad()
    def measure_held_out(self, batches: Iterable[Tensor]) -> None:
        """Set what is usual: median and median absolute deviation of each parent's scores."""
        scores = torch.cat([self.parents(x)[0] for x in batches])
        medians = scores.median(0).values
        deviations = (scores - medians).abs().median(0).values
        spreads = torch.maximum(deviations, LEAST * medians).clamp(min=LEAST)
        self.usual.copy_(torch.stack([medians, spreads]))


def build_csflow_nn(config: CSFlowNNConfig, material: Material[Any]) -> CSFlowNN:
    """Fill the bank, then prepare the flow."""
    backbone = build_backbone(config.nearest.backbone).to(material.accelerator.device)
    nearest = build_patch_nn(config.nearest, material, backbone)
    return prepared_flow(CSFlowNN(config, material.backbone, nearest), material)


def restored(config: CSFlowNNConfig, state: Mapping[str, Tensor]) -> CSFlowNN:
    """Rebuild a saved detector from its own state alone, strictly.

    Raises UserError when the state does not belong to the configuration.
    """
    backbone = build_backbone(replace(config.backbone, weights="random"))
    other = build_backbone(replace(config.nearest.backbone, weights="random"))
    nearest = PatchNN(config.nearest, other, torch.zeros_like(state["nearest.bank"]))
    return CSFlowNN(config, backbone, nearest).with_state(state)


PRESETS = {name: CSFlowNNConfig(**vars(CSFLOW_PRESETS[name])) for name in ("tiny", "compact")}
RECIPE = Recipe(
    config=CSFlowNNConfig,
    presets=PRESETS,
    build=build_csflow_nn,
    restore=restored,
)

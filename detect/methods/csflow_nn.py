"""CS-Flow beside the nearest normal patch: both rank an image, the patches mark its defects.

A flow knows how likely an image's features are together and marks regions coarsely; the distance to
the nearest normal patch (PatchCore, Roth et al., CVPR 2022) marks them well and sees a cell at a
time. The image score is the product of both scores, as a logarithm: neither is rescaled by
images, so that the threshold's promise is exact.
"""

from collections.abc import Mapping
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

LEAST = 1e-6
"""Of a score before its logarithm; an image of the bank itself is at distance 0."""


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
    """The flow is trained; `nearest` has its bank from the beginning."""

    def __init__(self, config: CSFlowNNConfig, backbone: Backbone, nearest: PatchNN) -> None:
        super().__init__(config, backbone)
        self.nearest = nearest

    @property
    def facts(self) -> str:
        """How many patches, and how large the flow is."""
        return f"{len(self.nearest.bank):,} normal patches, {super().facts}"

    def forward(self, images: Tensor) -> Scores:
        """Score images float32 [N, 3, H, W], RGB in [0, 1].

        log of the flow's score times the patches' score; maps are the patches', distances.
        """
        likelihood, distance = super().forward(images), self.nearest(images)
        both = torch.stack([likelihood.image, distance.image])
        return Scores(both.clamp(min=LEAST).log().sum(0), distance.maps)


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

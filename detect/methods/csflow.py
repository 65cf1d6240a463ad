"""CS-Flow: a normalizing flow over features of an image at three scales, coupled across scales.

Source: Rudolph, Wehrbein, Rosenhahn, Wandt, "Fully Convolutional Cross-Scale-Flows for Image-based
Defect Detection", WACV 2022. Shapes: as in `detect.methods.flow`.
"""

from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from detect.method import Recipe
from detect.methods.flow import ActNorm, Coupling, CrossScale, Flow, Permutation
from detect.methods.flow_detector import FlowConfig, FlowDetector, build_flow_detector
from synth.base.backbones import DEFAULT_BACKBONE, BackboneConfig

EFFICIENTNET_B5 = BackboneConfig(
    name="efficientnet_b5", layers=("features.6",), weights="torchvision"
)
"""304 channels of stride 32: the papers' "layer 36", counted in blocks."""


@dataclass(frozen=True, kw_only=True)
class CSFlowConfig(FlowConfig):
    """A CS-Flow and its training."""

    kernels: tuple[int, ...] = (3, 3, 3, 5)
    """Sides of the convolutions' kernels, block by block."""
    normalise: bool = False
    """Begin with an ActNorm: features of any size then train alike. Not the paper's."""

    def flow(self, channels: int) -> Flow:
        """Build one block for each kernel: a permutation and a coupling across scales."""
        scales = self.num_scales
        steps: list[nn.Module] = [ActNorm(scales, channels)] if self.normalise else []
        for k, kernel in enumerate(self.kernels):
            network = partial(CrossScale, channels, self.hidden, kernel, scales)
            steps += [Permutation(scales, channels, k, self.seed), Coupling(network, scales)]
        return Flow(steps)


_COMPACT = CSFlowConfig(
    image_size=(256, 256),
    backbone=replace(DEFAULT_BACKBONE, layers=(3,)),
    hidden=128,
    normalise=True,
    num_steps=1000,
    learning_rate=1e-3,
)
_PAPER = CSFlowConfig(
    image_size=(768, 768),
    backbone=EFFICIENTNET_B5,
    hidden=1024,
    num_epochs=240,
    learning_rate=2e-4,
    average=False,
)
PRESETS = {
    "tiny": replace(_COMPACT, image_size=(128, 128), num_steps=500),
    "compact": _COMPACT,
    "paper": _PAPER,
    "paper-6": replace(_PAPER, kernels=(3, 3, 3, 3, 3, 5)),
}
RECIPE = Recipe(
    config=CSFlowConfig,
    presets=PRESETS,
    build=build_flow_detector,
    restore=FlowDetector.from_state,
)

"""CS-Flow: a normalizing flow over features of an image at three scales, coupled across scales.

Source: Rudolph, Wehrbein, Rosenhahn, Wandt, "Fully Convolutional Cross-Scale-Flows for Image-based
Defect Detection", WACV 2022. Shapes: as in `detect.methods.flow`.
"""

from collections.abc import Sequence
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


def csflow(
    channels: int,
    *,
    hidden: int = 1024,
    kernels: Sequence[int] = (3, 3, 3, 5),
    num_scales: int = 3,
    normalise: bool = False,
    seed: int = 0,
) -> Flow:
    """Build one block for each kernel size: a permutation and a coupling across scales.

    normalise: an ActNorm before the first block, which the paper has not.
    """
    steps: list[nn.Module] = [ActNorm(num_scales, channels)] if normalise else []
    for k, kernel in enumerate(kernels):
        network = partial(CrossScale, channels, hidden, kernel, num_scales)
        steps += [Permutation(num_scales, channels, k, seed), Coupling(network, num_scales)]
    return Flow(steps)


@dataclass(frozen=True, kw_only=True)
class CSFlowConfig(FlowConfig):
    """A CS-Flow and its training."""

    kernels: tuple[int, ...] = (3, 3, 3, 5)
    """Sides of the convolutions' kernels, block by block."""
    normalise: bool = False
    """Begin with an ActNorm: features of any size then train alike. Not the paper's."""

    def flow(self, channels: int) -> Flow:
        """Build the blocks."""
        return csflow(
            channels,
            hidden=self.hidden,
            kernels=self.kernels,
            num_scales=self.num_scales,
            normalise=self.normalise,
            seed=self.seed,
        )


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

"""ValidFlow: couplings with attention, by turns within each scale and across all of them.

Source: ValidFlow (Journal of Data Acquisition and Processing, 2023, no. 6, pp. 1445-1457). The text
leaves widths and kernels open; ours reproduce its number of parameters, 162.89 M (see
`ValidFlowConfig`).
Shapes: as in `detect.methods.flow`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detect.method import Recipe
from detect.methods.csflow import EFFICIENTNET_B5
from detect.methods.flow import SLOPE, ActNorm, Coupling, CrossScale, Flow, Permutation
from detect.methods.flow_detector import FlowConfig, FlowDetector, build_flow_detector
from synth.base.backbones import DEFAULT_BACKBONE

KERNEL = 3


class CBAM(nn.Module):
    """Weigh channels, then positions, by what they hold. Source: CBAM (Woo et al., ECCV 2018)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        narrow = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, narrow, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(narrow, channels, 1, bias=False),
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, h, w] to [N, C, h, w]."""
        x = x * (self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), True))).sigmoid()
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * self.spatial(pooled).sigmoid()


class WithinScale(nn.Module):
    """Two separable convolutions at each scale by itself, then attention: r1 of the FA flow."""

    def __init__(self, channels: int, hidden: int, num_scales: int, reduction: int | None) -> None:
        """reduction: of the attention; None leaves it out."""
        super().__init__()
        self.narrow = nn.ModuleList(separable(channels // 2, hidden) for _ in range(num_scales))
        self.wide = nn.ModuleList(separable(hidden, channels) for _ in range(num_scales))
        self.attention = nn.ModuleList(attend(channels, reduction) for _ in range(num_scales))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map [N, C/2, h_i, w_i] per scale to [N, C, h_i, w_i]."""
        layers = zip(self.narrow, self.wide, self.attention, maps, strict=True)
        return [a(wide(F.leaky_relu(narrow(x), SLOPE))) for narrow, wide, a, x in layers]


def separable(channels: int, width: int) -> nn.Sequential:
    """A depthwise and a pointwise convolution."""
    depthwise = nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
    return nn.Sequential(depthwise, nn.Conv2d(channels, width, 1))


def attend(channels: int, reduction: int | None) -> nn.Module:
    """CBAM, or nothing."""
    return nn.Identity() if reduction is None else CBAM(channels, reduction)


@dataclass(frozen=True, kw_only=True)
class ValidFlowConfig(FlowConfig):
    """A ValidFlow and its training.

    The paper fixes its 162.89 M parameters, but neither widths nor kernels. With 3 x 3 kernels,
    both convolutions within a scale separable and one attention for each scale, a reduction of 8
    gives `hidden` = 896.03; 16 gives 898.3, 4 gives 891.4.
    """

    num_modules: int = 3
    """Pairs of a flow within scales and one across them."""
    cbam_reduction: int | None = 8
    """Of the attention's channels; None leaves it out."""
    all_pairs: bool = True
    """Join the finest and the coarsest scale directly too."""

    def flow(self, channels: int) -> Flow:
        """Build modules of an FA flow (within scales) and an FB flow (across), ActNorm before."""
        hidden, scales = self.hidden, self.num_scales
        within = partial(WithinScale, channels, hidden, scales, self.cbam_reduction)
        across = partial(
            CrossScale,
            channels,
            hidden,
            KERNEL,
            scales,
            all_pairs=self.all_pairs,
            attention=partial(attend, channels, self.cbam_reduction),
        )
        steps: list[nn.Module] = []
        for k, network in enumerate([within, across] * self.num_modules):
            steps += [
                ActNorm(scales, channels),
                Permutation(scales, channels, k, self.seed),
                Coupling(network, scales),
            ]
        return Flow(steps)


_COMPACT = ValidFlowConfig(
    image_size=(256, 256),
    backbone=replace(DEFAULT_BACKBONE, layers=(3,)),
    hidden=128,
    num_steps=1000,
    learning_rate=1e-3,
)
PRESETS = {
    "tiny": replace(_COMPACT, image_size=(128, 128), num_steps=500),
    "compact": _COMPACT,
    "paper": ValidFlowConfig(
        image_size=(768, 768),
        backbone=EFFICIENTNET_B5,
        hidden=896,
        num_epochs=300,
        learning_rate=2e-4,
        average=False,
    ),
}
RECIPE = Recipe(
    config=ValidFlowConfig,
    presets=PRESETS,
    build=build_flow_detector,
    restore=FlowDetector.from_state,
)

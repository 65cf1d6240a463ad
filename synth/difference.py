"""Where an image differs from another more than chance alone makes it: maps and masks.

Distances in the layers of a frozen network. H x W pixels; h x w cells of a layer, C channels.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from synth.errors import UserError
from synth.features import DEFAULT_BACKBONE, Backbone, build_backbone

Image = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB."""

FALSE_SHARE = 0.01
"""Of the pixels of two images that differ by chance alone, how many a mask covers."""
MAGNIFICATION = 2
"""Images are enlarged this much for the network: a cell of layer 1 is then 2 pixels wide."""


class DifferenceRule(NamedTuple):
    """How a difference map is made, and from where on it counts.

    layers: the mean difference in each layer between images that differ by chance alone, which it
    is divided by. threshold: the quantile 1 - FALSE_SHARE of their map's values.
    """

    backbone: Backbone
    layers: tuple[float, ...]
    threshold: float

    def map(self, image: Image, other: Image) -> NDArray[np.float32]:
        """How much two images differ at each pixel, float32 [H, W]; 1 is the mean by chance."""
        per_layer = layer_differences(self.backbone, image, other)  # [K, H, W]
        return (per_layer / torch.tensor(self.layers).view(-1, 1, 1)).mean(dim=0).numpy()

    def mask(self, image: Image, other: Image) -> NDArray[np.bool_]:
        """Where they differ more than by chance, bool [H, W]; may be empty."""
        return self.map(image, other) > self.threshold

    def to_json(self) -> dict[str, Any]:
        """As recorded in sia.json."""
        return {
            "backbone": self.backbone.digest,
            "layers": list(self.layers),
            "threshold": self.threshold,
            "false_share": FALSE_SHARE,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "DifferenceRule":
        """From what `to_json` gave. Raises UserError where another network made it."""
        backbone = build_backbone(DEFAULT_BACKBONE)
        if values["backbone"] != backbone.digest:
            raise UserError(
                "the folder's masks were made with another backbone than this version's; give "
                "another --out"
            )
        return cls(backbone, tuple(values["layers"]), values["threshold"])


def fit_difference_rule(pairs: Iterable[tuple[Image, Image]]) -> DifferenceRule:
    """The rule for images of one size that differ by chance alone.

    Its figures are rounded to four digits: machines that round differently get the same ones.
    """
    backbone = build_backbone(DEFAULT_BACKBONE)
    maps = torch.stack([layer_differences(backbone, *pair) for pair in pairs])  # [N, K, H, W]
    layers = tuple(four_digits(mean) for mean in maps.mean(dim=(0, 2, 3)).tolist())
    combined = (maps / torch.tensor(layers).view(1, -1, 1, 1)).mean(dim=1)
    threshold = np.quantile(combined.numpy(), 1 - FALSE_SHARE)
    return DifferenceRule(backbone, layers, four_digits(float(threshold)))


@torch.no_grad()
def layer_differences(backbone: Backbone, image: Image, other: Image) -> Tensor:
    """Mean squared difference over each layer's channels, brought to the images' size: [K, H, W].

    One pair at a time, so that rounding does not depend on a batch.
    """
    height, width = image.shape[:2]
    pixels = torch.from_numpy(np.stack([image, other])).permute(0, 3, 1, 2).float() / 255
    enlarged = F.interpolate(pixels, scale_factor=MAGNIFICATION, mode="bilinear")
    maps = []
    for features in backbone(enlarged):  # [2, C, h, w]
        d = (features[0] - features[1]).square().mean(dim=0)
        maps.append(F.interpolate(d[None, None], size=(height, width), mode="bilinear")[0, 0])
    return torch.stack(maps)


def four_digits(value: float) -> float:
    """Rounded to four significant digits; never 0, which nothing can be divided by."""
    return float(f"{max(value, 1e-9):.4g}")

"""What is exported: from the pixels of an image file to its score, in one graph.

Shapes: N images of H x W pixels, any; the detector's own size is h x w.
"""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from detect.detector import Detector

INPUT, OUTPUTS = "images", ("score", "map")
ABOUT_INPUT = "uint8 [N, H, W, 3], RGB, any height and width; resized inside"
ABOUT_OUTPUTS = "score: float32 [N], higher is more anomalous; map: float32 [N, {0}, {1}], likewise"
TRACED = (3, 61, 83)  # N, H, W of the images that the graph is recorded with


class Graph(nn.Module):
    """A detector with its preprocessing: resizing, and scaling to [0, 1]."""

    def __init__(self, detector: Detector, size: tuple[int, int]) -> None:
        super().__init__()
        self.detector, self.size = detector, size

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score uint8 [N, H, W, 3], RGB: scores [N] and maps [N, h, w], float32."""
        scores = self.detector(resized(images, self.size) / 255)
        return scores.image, scores.maps  # a bare tuple: files know no types of ours


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 [N, H, W, 3] to whole levels, float32 [N, 3, *size], as synth.images.resize.

    Each axis is one matrix product, so that every runtime computes the same. Images of this size
    come out as they are. Shrunk ones equal OpenCV's but for a pixel in 100 000, enlarged ones may
    differ by one level of 255: OpenCV rounds its weights for 8-bit images.
    """
    _, H, W, _ = images.shape
    height, width = size
    x = axis_weights(H, height) @ images.permute(0, 3, 1, 2).float() @ axis_weights(W, width).T
    # Of exactly half the size, OpenCV rounds halves up, else to even.
    bottom, right = torch.arange(H)[-1], torch.arange(W)[-1]  # tensors: no branch is recorded
    halved = (bottom == 2 * height - 1) & (right == 2 * width - 1)
    return torch.where(halved, torch.floor(x + 0.5), torch.round(x))


def axis_weights(old: int, new: int) -> Tensor:
    """Return float32 [new, old]: the share of each old pixel in each new one; rows sum to 1.

    An axis that shrinks is averaged over areas, one that grows is bilinear.
    """
    i = torch.arange(old)  # of the old pixels
    j = torch.arange(new).unsqueeze(1)  # of the new pixels
    # In units of 1 / (old new) both grids lie at whole numbers: no rounding before the division.
    overlap = torch.minimum((j + 1) * old, (i + 1) * new) - torch.maximum(j * old, i * new)
    area = overlap.clamp(min=0).float() / old
    centre = (((2 * j + 1) * old - new).float() / (2 * new)).clamp(min=0)
    centre = torch.minimum(centre, i[-1:].float())
    linear = (1 - (centre - i.float()).abs()).clamp(min=0)
    return torch.where(i[-1] >= new, area, linear)


def record(detector: Detector, size: tuple[int, int]) -> ExportedProgram:
    """Record the graph of a detector in evaluation mode, for any N, H and W."""
    images = torch.zeros(*TRACED, 3, dtype=torch.uint8)
    shapes = {"images": {0: Dim("N"), 1: Dim("H"), 2: Dim("W")}}
    with torch.no_grad():
        return torch.export.export(Graph(detector, size).eval(), (images,), dynamic_shapes=shapes)

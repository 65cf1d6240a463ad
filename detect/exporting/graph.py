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

    Each axis is one matrix product, so that every runtime computes the same. Enlarged images and
    those of this size equal OpenCV's, shrunk ones but for a pixel in 100 000.
    """
    _, H, W, _ = images.shape
    height, width = size
    x = shrinking(H, height) @ images.permute(0, 3, 1, 2).float() @ shrinking(W, width).T
    # Of exactly half the size, OpenCV rounds halves up, else to even.
    bottom, right = torch.arange(H)[-1], torch.arange(W)[-1]  # tensors: no branch is recorded
    halved = (bottom == 2 * height - 1) & (right == 2 * width - 1)
    return enlarged(torch.where(halved, torch.floor(x + 0.5), torch.round(x)), (H, W))


def shrinking(old: int, new: int) -> Tensor:
    """Return float32 [new, old]: the share of each old pixel in each new one, by areas.

    An axis that grows is kept as it is, in the first places.
    """
    i = torch.arange(old)  # of the old pixels
    j = torch.arange(new).unsqueeze(1)  # of the new pixels
    # In units of 1 / (old new) both grids lie at whole numbers: no rounding before the division.
    overlap = torch.minimum((j + 1) * old, (i + 1) * new) - torch.maximum(j * old, i * new)
    area = overlap.clamp(min=0).float() / old
    return torch.where(i[-1] >= new, area, (i == j).float())


def enlarged(levels: Tensor, old: tuple[int, int]) -> Tensor:
    """Interpolate axes that grow from `old`, whose levels [N, 3, h, w] lie in the first places.

    In whole numbers, as OpenCV computes it for 8-bit images: weights of 11 bits, and the sums of
    the rows cut to 15 bits before the columns are weighed.
    """
    h, w = levels.shape[-2:]
    above, below, top, bottom = growing(old[0], h)
    before, behind, left, right = growing(old[1], w)
    x = levels.int()
    sums = left * x.index_select(3, before) + right * x.index_select(3, behind)
    sums = sums.div(16, rounding_mode="trunc")
    upper = top.unsqueeze(1) * sums.index_select(2, above)
    lower = bottom.unsqueeze(1) * sums.index_select(2, below)
    upper, lower = (part.div(1 << 16, rounding_mode="trunc") for part in (upper, lower))
    return (upper + lower + 2).div(4, rounding_mode="trunc").float()


def growing(old: int, new: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two old pixels of every new one, int64, and their weights in 2048ths, int32.

    An axis that does not grow has each pixel with its whole weight.
    """
    j, last = torch.arange(new), torch.arange(old)[-1]
    centre = ((2 * j + 1) * old - new).float() / (2 * new)
    centre = torch.where(last + 1 < new, centre, j.float())
    last = torch.minimum(last, j[-1])
    first = centre.floor()
    share = centre - first
    first = first.long()
    one, other = (torch.minimum(i.clamp(min=0), last) for i in (first, first + 1))
    weight, rest = ((part * 2048).round().int() for part in (1 - share, share))
    return one, other, weight, rest


def record(detector: Detector, size: tuple[int, int]) -> ExportedProgram:
    """Record the graph of a detector in evaluation mode, for any N, H and W."""
    images = torch.zeros(*TRACED, 3, dtype=torch.uint8)
    shapes = {"images": {0: Dim("N"), 1: Dim("H"), 2: Dim("W")}}
    with torch.no_grad():
        return torch.export.export(Graph(detector, size).eval(), (images,), dynamic_shapes=shapes)

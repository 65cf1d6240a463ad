"""RRS: Reconstruction Residuals Selection, and the head that reads the selected residuals.

Source: RealNet, section on RRS; details as in the authors' code.
Shapes: N images, C residual channels of all layers together, r of them selected, h x w pixels.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detect.batch_norm import GlobalBatchNorm2d
from synth.base.errors import UserError


class RRS(nn.Module):
    """Keep the residual channels that stand out in an image, by maximum and by mean.

    Layers differ in scale, so channels are compared after a BatchNorm (statistics of the batch in
    training, running ones in evaluation); the residuals are passed on unchanged. A channel that
    wins both lists appears twice. Momentum 0.9 is in torch's sense: running statistics are 90 %
    the last batch's, which follows residuals that shrink during training.
    """

    def __init__(self, num_channels: int, num_max: int, num_mean: int) -> None:
        super().__init__()
        if not (0 <= num_max <= num_channels and 0 <= num_mean <= num_channels):
            raise UserError(
                f"RRS num_max and num_mean: got {num_max} and {num_mean}; "
                f"allowed are 0 to {num_channels}, the residual channels of all layers"
            )
        self.num_max, self.num_mean = num_max, num_mean
        self.norm = GlobalBatchNorm2d(num_channels, affine=False, momentum=0.9)

    def forward(self, residual: Tensor) -> Tensor:
        """Map [N, C, h, w] to [N, r, h, w]: first by maximum, then by mean, each descending.

        Gradients reach the selected residuals; the selection itself has none.
        """
        N, C, h, w = residual.shape
        index = self.select(residual.detach())  # [N, r]
        chosen = torch.zeros(N, C, index.shape[1], dtype=residual.dtype, device=residual.device)
        chosen.scatter_(1, index.unsqueeze(1), 1.0)
        # A product with ones and zeros gathers exactly (under autocast in bfloat16, to which the
        # head's convolutions would round anyway), and keeps channels last: half the time on a CPU,
        # forward and backward.
        rows = residual.permute(0, 2, 3, 1).reshape(N, h * w, C) @ chosen  # [N, h w, r]
        return rows.view(N, h, w, -1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def select(self, residual: Tensor) -> Tensor:
        """Return the channels to keep, int64 [N, num_max + num_mean], different for each image."""
        normalised = self.norm(residual)
        by_max = normalised.amax((2, 3)).topk(self.num_max).indices
        by_mean = normalised.mean((2, 3)).topk(self.num_mean).indices
        return torch.cat([by_max, by_mean], dim=1)


class SegmentationHead(nn.Module):
    """Two residual blocks of width r, then narrowing convolutions to two classes per pixel.

    r = 512 and the widths (128, 32, 8, 4) give the authors' 5 872 662 parameters. separable: the
    residual blocks' 3 x 3 convolutions see each channel alone. activation: of the narrowing
    convolutions. Short trainings with ReLU came to say "anomalous" by silent units: the logits are
    then the last biases, the map stops near 0.5, and all clear anomalies get the same score.
    """

    def __init__(
        self,
        num_channels: int,
        widths: tuple[int, int, int, int],
        *,
        separable: bool = False,
        activation: Literal["relu", "silu"] = "relu",
    ) -> None:
        super().__init__()
        a, b, c, d = widths
        active = {"relu": nn.ReLU, "silu": nn.SiLU}[activation]
        blocks = [_ResidualBlock(num_channels, separable) for _ in range(2)]
        self.residual = nn.Sequential(*blocks, nn.ReLU())
        self.narrow = nn.Sequential(
            nn.Conv2d(num_channels, a, 3, padding=1),
            GlobalBatchNorm2d(a),
            active(),
            nn.Conv2d(a, b, 3, padding=1),
            active(),
            nn.Conv2d(b, c, 3, padding=1),
            active(),
        )
        self.classify = nn.Sequential(
            nn.Conv2d(c, d, 3, padding=1), active(), nn.Conv2d(d, 2, 3, padding=1)
        )

    def forward(self, residual: Tensor, size: tuple[int, int]) -> Tensor:
        """Map residuals [N, r, h, w] to float32 logits [N, 2, *size]; class 1 is anomalous."""
        x = self.narrow(self.residual(residual))  # [N, c, h, w]
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        logits = self.classify(x).float()  # [N, 2, 2h, 2w]
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)


class _ResidualBlock(nn.Module):
    """x + conv1(ReLU(conv3(ReLU(x)))), without biases; separable: conv3 sees each channel alone."""

    def __init__(self, channels: int, separable: bool) -> None:
        super().__init__()
        groups = channels if separable else 1
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv1(F.relu(self.conv3(F.relu(x))))

"""An image's score from its anomaly map, for every detector alike."""

import torch.nn.functional as F
from torch import Tensor


def image_scores(maps: Tensor) -> Tensor:
    """Return the largest mean over any square window of a map: [N, H, W] to [N].

    The window has 16 pixels at the authors' 256 and scales with the shorter side.
    """
    H, W = maps.shape[-2:]
    kernel = max(1, round(16 * min(H, W) / 256))
    return F.avg_pool2d(maps.unsqueeze(1), kernel, stride=1).amax((1, 2, 3))

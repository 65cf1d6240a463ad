"""An image's score from its anomaly map, for every detector alike."""

import torch.nn.functional as F
from torch import Tensor


def pooling_window(H: int, W: int) -> int:
    """Side of the square window that an image of H x W pixels is judged by: 16 at 256 px."""
    return max(1, round(16 * min(H, W) / 256))


def image_scores(maps: Tensor, window: int | None = None) -> Tensor:
    """Return the largest mean over any square window of a map: [N, H, W] to [N].

    The window has 16 pixels at the authors' 256 and scales with the shorter side, unless given.
    """
    H, W = maps.shape[-2:]
    return _window_means(maps, window or pooling_window(H, W)).amax((1, 2, 3))


def rejected_windows(maps: Tensor, threshold: float, window: int | None = None) -> Tensor:
    """Where any window's mean is above the threshold: bool [N, H, W], all of such windows.

    The best window always counts: where a map is rejected, something is marked.
    """
    H, W = maps.shape[-2:]
    side = window or pooling_window(H, W)
    means = _window_means(maps, side)  # [N, 1, H - side + 1, W - side + 1]
    chosen = (means > threshold) | (means == means.amax((2, 3), keepdim=True))
    around = F.pad(chosen.float(), [side - 1] * 4)
    covered = F.max_pool2d(F.max_pool2d(around, (side, 1), stride=1), (1, side), stride=1)
    return covered[:, 0] > 0


def _window_means(maps: Tensor, window: int) -> Tensor:
    columns = F.avg_pool2d(maps.unsqueeze(1), (window, 1), stride=1)  # axis by axis: 4 x faster
    return F.avg_pool2d(columns, (1, window), stride=1)

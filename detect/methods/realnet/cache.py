"""Features of normal images, computed once: a frozen backbone gives the same ones in every epoch.

Shapes: N images; layer k has m_k channels on h_k x w_k pixels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detect.images import to_chw, to_unit
from synth.images import Progress

FEATURE_BYTES = 2 << 30
"""Memory for features on their device; the features of further images are computed each time."""
BATCH_SIZE = 16

Compute = Callable[[Tensor], Sequence[Tensor]]
"""Images float32 [N, 3, H, W], RGB in [0, 1], to a map [N, m_k, h_k, w_k] per layer."""


class FeatureCache:
    """Feature maps of the first normal images of a training set, on their own device.

    Only the order of the images decides which are kept and in which batches they are computed:
    convolutions round differently in batches of other sizes, and a training that continues after a
    kill needs the features it had.
    """

    def __init__(self, maps: Sequence[Tensor]) -> None:
        """Hold maps [num_kept, m_k, h_k, w_k] of images 0 to num_kept - 1."""
        self.maps = maps
        self.num_kept = len(maps[0]) if maps else 0

    def __call__(self, numbers: Tensor, images: Tensor, compute: Compute) -> list[Tensor]:
        """Return the maps of normal images, float32 [N, m_k, h_k, w_k], computing missing ones.

        numbers: int64 [N] on the CPU, of images [N, 3, H, W]; one number is always one image.
        """
        absent = (numbers >= self.num_kept).nonzero().flatten()
        if len(absent) == len(numbers):
            return [x.float() for x in compute(images)]
        places = numbers.clamp(max=self.num_kept - 1)
        found = [maps[places.to(maps.device)].float() for maps in self.maps]
        if len(absent):
            for maps, new in zip(found, compute(images[absent]), strict=True):
                maps[absent] = new.float()
        return found


def filled_cache(
    images: Sequence[NDArray[np.uint8]],
    compute: Compute,
    device: torch.device,
    progress: Progress | None = None,
    limit: int = FEATURE_BYTES,
) -> FeatureCache:
    """Compute the features of images uint8 [H, W, 3] on `device`, as many as `limit` bytes hold."""
    kept: list[Tensor] = []
    start, num_kept = 0, len(images)
    while start < num_kept:
        batch = torch.stack([to_chw(image) for image in images[start : start + BATCH_SIZE]])
        fresh = compute(to_unit(batch.to(device)))
        if not kept:
            bytes_each = sum(x[0].numel() * x.element_size() for x in fresh)
            num_kept = min(num_kept, limit // bytes_each)
            kept = [_places(num_kept, x) for x in fresh]
        stop = min(start + len(batch), num_kept)
        for maps, x in zip(kept, fresh, strict=True):
            maps[start:stop] = x[: stop - start]
        start = stop
        if progress is not None:
            progress(stop, num_kept)
    return FeatureCache(kept)


def _places(num_places: int, like: Tensor) -> Tensor:
    """Allocate maps like these, in the layout that is fastest for convolutions."""
    _, m, h, w = like.shape
    room = torch.empty(num_places, m, h, w, dtype=like.dtype, device=like.device)
    return room.contiguous(memory_format=torch.channels_last)

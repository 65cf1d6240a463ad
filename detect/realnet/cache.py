"""Features of normal images, computed once: a frozen backbone sees the same ones in every epoch.

Shapes: N images; layer k has m_k channels on h_k x w_k pixels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CACHE_BYTES = 2 << 30
"""Of the features' device; images beyond it are computed each time."""


class FeatureCache:
    """Feature maps by the number of their normal image, on their own device."""

    def __init__(self, num_images: int, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.slots = torch.full((num_images,), -1)  # where image n lies; -1: nowhere
        self.maps: list[Tensor] = []
        self.num_places = self.num_kept = 0

    def __call__(
        self, numbers: Tensor, images: Tensor, compute: Callable[[Tensor], Sequence[Tensor]]
    ) -> list[Tensor]:
        """Return the maps of normal images, float32 [N, m_k, h_k, w_k], computing the absent ones.

        numbers: int64 [N] on the CPU, of images [N, 3, H, W]; one number is always one image.
        """
        slots = self.slots[numbers]
        absent = (slots < 0).nonzero().flatten()
        if len(absent) == 0:
            return self._read(slots)
        fresh = compute(images if len(absent) == len(images) else images[absent])
        self._keep(numbers[absent], fresh)
        if len(absent) == len(images):
            return [x.float() for x in fresh]
        found = self._read(slots.clamp(min=0))
        for maps, new in zip(found, fresh, strict=True):
            maps[absent] = new.float()
        return found

    def _read(self, slots: Tensor) -> list[Tensor]:
        """Copy the maps out of these places."""
        return [maps[slots.to(maps.device)].float() for maps in self.maps]

    def _keep(self, numbers: Tensor, fresh: Sequence[Tensor]) -> None:
        """Store maps of images that have no place yet, as far as there is room."""
        if not self.maps:
            bytes_each = sum(x[0].numel() * x.element_size() for x in fresh)
            self.num_places = min(len(self.slots), self.limit // bytes_each)
            self.maps = [_places(self.num_places, x) for x in fresh]
        for position, number in enumerate(numbers.tolist()):
            if self.slots[number] < 0 and self.num_kept < self.num_places:
                for maps, x in zip(self.maps, fresh, strict=True):
                    maps[self.num_kept] = x[position]
                self.slots[number] = self.num_kept
                self.num_kept += 1


def _places(num_places: int, like: Tensor) -> Tensor:
    """Room for maps like these, in the layout that convolutions are fastest in."""
    _, m, h, w = like.shape
    room = torch.empty(num_places, m, h, w, dtype=like.dtype, device=like.device)
    return room.contiguous(memory_format=torch.channels_last)

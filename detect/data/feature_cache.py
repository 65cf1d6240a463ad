"""Features of normal images, computed once: a frozen backbone gives the same ones in every epoch.

They lie in memory for one training, or in a file for all trainings with the same images and
backbone. Shapes: N images; layer k has m_k channels on h_k x w_k pixels; D features in all.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detect.images import to_batch
from synth.base import cache
from synth.base.errors import DataWarning, UserError
from synth.base.files import atomic_path
from synth.images import Progress

FEATURE_BYTES = 2 << 30
"""Memory for features on their device; the features of further images are computed each time."""
BATCH_SIZE = 16
FILE_VERSION = 1
"""Version of what a file's features are computed from, and how; those of others are not used."""

Compute = Callable[[Tensor], Sequence[Tensor]]
"""Images float32 [N, 3, H, W], RGB in [0, 1], to a map [N, m_k, h_k, w_k] per layer."""


class FeatureCache:
    """Feature maps of the first normal images of a training set, on a device or in a mapped file.

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

        numbers: int64 [N] on the CPU, of images [N, 3, H, W]; one number is always one image. The
        maps are on the images' device.
        """
        absent = (numbers >= self.num_kept).nonzero().flatten()
        if len(absent) == len(numbers):
            return [x.float() for x in compute(images)]
        places = numbers.clamp(max=self.num_kept - 1)
        picked = (maps[places.to(maps.device)] for maps in self.maps)
        found = [x.float().to(images.device) for x in picked]
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
        fresh = compute(to_batch(images[start : start + BATCH_SIZE], device))
        if not kept:
            bytes_each = sum(x[0].numel() * x.element_size() for x in fresh)
            num_kept = min(num_kept, limit // bytes_each)
            kept = [_places(num_kept, x) for x in fresh]
        stop = min(start + BATCH_SIZE, num_kept)
        for maps, x in zip(kept, fresh, strict=True):
            maps[start:stop] = x[: stop - start]
        start = stop
        if progress is not None:
            progress(stop, num_kept)
    return FeatureCache(kept)


def stored_cache(
    images: Sequence[NDArray[np.uint8]],
    compute: Compute,
    device: torch.device,
    about: Mapping[str, Any],
    progress: Progress | None = None,
) -> FeatureCache:
    """As `filled_cache`, float32 in a file that other trainings read; computed where it is missing.

    about: JSON values that the features depend on, besides the images. The file is mapped, not
    read: memory stays free. Where it cannot be written, the features are kept as `filled_cache`
    keeps them, with a DataWarning.
    """
    path = feature_file(images, about)
    shapes = [x.shape[1:] for x in compute(to_batch(images[:1], device))]
    sizes = [shape.numel() for shape in shapes]
    if not is_whole(path, (len(images), sum(sizes))):
        try:
            write_features(path, images, compute, device, sum(sizes), progress)
        except UserError as error:
            warnings.warn(
                f"{error}; the features are kept in memory, those of some images may be computed "
                "anew in each epoch",
                DataWarning,
                stacklevel=2,
            )
            return filled_cache(images, compute, device, progress)
    rows = torch.from_numpy(np.load(path, mmap_mode="c"))  # a private copy of what is written to
    parts = rows.split(sizes, dim=1)
    return FeatureCache([x.unflatten(1, shape) for x, shape in zip(parts, shapes, strict=True)])


def feature_file(images: Sequence[NDArray[np.uint8]], about: Mapping[str, Any]) -> Path:
    """Where the features lie, under a digest of all that they depend on."""
    sha = hashlib.sha256(json.dumps({"version": FILE_VERSION, **about}, sort_keys=True).encode())
    for image in images:
        sha.update(str(image.shape).encode() + np.ascontiguousarray(image).tobytes())
    return cache.cache_folder() / "features" / f"{sha.hexdigest()[:32]}.npy"


def is_whole(path: Path, shape: tuple[int, int]) -> bool:
    """Whether a file has float32 features of this shape; a damaged one is to be written anew."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return found.shape == shape and found.dtype == np.float32


def write_features(
    path: Path,
    images: Sequence[NDArray[np.uint8]],
    compute: Compute,
    device: torch.device,
    D: int,
    progress: Progress | None,
) -> None:
    """Write float32 [len(images), D] as a .npy file. Raises UserError where there is no room."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(images), D)}
    with atomic_path(path) as partial, partial.open("wb") as file:
        needed, free = 4 * len(images) * D, shutil.disk_usage(path.parent).free
        if needed > free:
            raise UserError(
                f"{path}: not written, the features of {len(images)} images take "
                f"{needed / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free"
            )
        np.lib.format.write_array_header_1_0(file, cast(Any, header))
        for start in range(0, len(images), BATCH_SIZE):
            maps = compute(to_batch(images[start : start + BATCH_SIZE], device))
            rows = torch.cat([x.float().flatten(1) for x in maps], dim=1)
            file.write(rows.cpu().numpy().tobytes())
            if progress is not None:
                progress(start + len(rows), len(images))


def _places(num_places: int, like: Tensor) -> Tensor:
    """Allocate maps like these, in the layout that is fastest for convolutions."""
    _, m, h, w = like.shape
    room = torch.empty(num_places, m, h, w, dtype=like.dtype, device=like.device)
    return room.contiguous(memory_format=torch.channels_last)

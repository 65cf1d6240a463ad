"""Training samples: normal images and, half of the time, images with an anomaly blended in on the fly.

Sample n depends on (seed, n) alone: not on workers, batches, processes or a restart.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detect.detector import Batch
from synth.blend import blend_random
from synth.errors import UserError
from synth.foreground import ForegroundRule
from synth.images import read_image, resize
from synth.pictures import Images
from synth.seeding import derive_seed
from synth.sia import SiaFolder

AnomalySource = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.uint8]]
"""(rng, (H, W)) -> an anomaly image P, uint8 [H, W, 3] RGB."""

CACHE_BYTES = 1 << 30
ANOMALOUS_SHARE = 0.5
OPACITY = (0.5, 1.0)


def sia_source(folder: SiaFolder) -> AnomalySource:
    """Random images of an SIA folder; decoded once and kept while they fit into 1 GiB."""
    kept: dict[int, NDArray[np.uint8]] = {}

    def draw(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
        number = int(rng.integers(len(folder.rows)))
        if number in kept and kept[number].shape[:2] == size:
            return kept[number]
        image = resize(read_image(folder.path / folder.rows[number]["file_name"]), size)
        if (len(kept) + 1) * image.nbytes <= CACHE_BYTES:
            kept[number] = image
        return image

    return draw


def noise_source(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """An image of independent uniform noise: what an anomaly source is worth without any model."""
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


class Sample(NamedTuple):
    """One training sample: A and I, uint8 [3, H, W] RGB; M, bool [H, W]."""

    image: Tensor
    normal: Tensor
    mask: Tensor


class BlendedDataset(Dataset[Sample]):
    """Endless samples over the normal images, uint8 [N, H, W, 3], in shuffled epochs.

    A sample is blended with probability `anomalous_share`. Source: RealNet, local anomaly synthesis; empty masks are
    drawn again where the authors' code keeps them, so that the share holds.
    """

    def __init__(
        self,
        normals: Images,
        rule: ForegroundRule,
        source: AnomalySource,
        *,
        seed: int,
        anomalous_share: float = ANOMALOUS_SHARE,
    ) -> None:
        self.normals, self.source, self.seed = normals, source, seed
        self.anomalous_share = anomalous_share
        self.foregrounds = [rule.apply(image) for image in normals]
        bare = sum(not mask.any() for mask in self.foregrounds)
        if bare:
            raise UserError(
                f"foreground: none found in {bare} of {len(normals)} normal images (rule {rule.method}); "
                "look at them with `synth inspect`, or remove them"
            )

    def __getitem__(self, number: int) -> Sample:
        epoch, place = divmod(number, len(self.normals))
        order = np.random.default_rng(derive_seed(self.seed, 0, epoch)).permutation(
            len(self.normals)
        )
        n = int(order[place])
        rng = np.random.default_rng(derive_seed(self.seed, 1, number))
        normal = self.normals[n]
        if rng.random() >= self.anomalous_share:
            return Sample(
                *map(to_chw, (normal, normal)), torch.zeros(normal.shape[:2], dtype=torch.bool)
            )
        H, W = normal.shape[:2]
        blended = blend_random(
            normal, self.foregrounds[n], self.source(rng, (H, W)), rng, opacity=OPACITY
        )
        return Sample(to_chw(blended.image), to_chw(normal), torch.from_numpy(blended.mask))


def to_chw(image: NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def batches(
    dataset: Dataset[Sample],
    batch_size: int,
    first: int,
    last: int,
    device: torch.device,
    *,
    process: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """This process's share of batches first..last-1, on `device`."""
    shares: list[Sequence[int]] = [
        range(b * batch_size + process, (b + 1) * batch_size, num_processes)
        for b in range(first, last)
    ]
    loader = DataLoader(
        dataset, batch_sampler=shares, num_workers=num_workers, pin_memory=device.type == "cuda"
    )  # pyright: ignore[reportArgumentType]
    for image, normal, mask in loader:
        yield Batch(to_unit(image.to(device)), to_unit(normal.to(device)), mask.to(device))


def to_unit(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 in [0, 1]."""
    return images.float() / 255

"""Training samples: normal images and, half of the time, images with an anomaly blended in.

Sample n depends only on (seed, n), not on workers, batches, processes or restarts.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detect.data.sources import DrawAnomaly
from detect.detector import Batch
from detect.images import to_chw, to_unit
from synth.base.errors import UserError
from synth.base.seeding import derive_seed
from synth.blend import blend_random, paste_random
from synth.data.foreground import ForegroundRule
from synth.pictures import Images

ANOMALOUS_SHARE = 0.5


class Sample(NamedTuple):
    """One training sample: A and I, uint8 [3, H, W] RGB; M, bool [H, W]; the number of image I."""

    image: Tensor
    normal: Tensor
    mask: Tensor
    number: int


class BlendedDataset(Dataset[Sample]):
    """Endless samples over the normal images, uint8 [N, H, W, 3], in shuffled epochs.

    A sample is blended with probability `anomalous_share`. Source: RealNet, local anomaly
    synthesis; empty masks are drawn again, so that the share holds, and pixels are rounded, unless
    `official` asks for the authors' way. Without a source all samples are normal. foregrounds: the
    rule's results, if they are known. Raises UserError if the rule finds no foreground in an image.
    """

    def __init__(
        self,
        normals: Images,
        rule: ForegroundRule,
        source: DrawAnomaly | None,
        *,
        seed: int,
        anomalous_share: float = ANOMALOUS_SHARE,
        official: bool = False,
        foregrounds: Sequence[NDArray[np.bool_]] | None = None,
    ) -> None:
        self.normals, self.source, self.seed = normals, source, seed
        self.anomalous_share, self.official = anomalous_share, official
        if foregrounds is None and source is not None:
            foregrounds = find_foregrounds(normals, rule)
        self.foregrounds = foregrounds or ()

    @property
    def num_images(self) -> int:
        """How many normal images there are."""
        return len(self.normals)

    def __getitem__(self, number: int) -> Sample:
        return self.sample(*drawn(self.seed, number, self.num_images))

    def sample(self, n: int, rng: np.random.Generator) -> Sample:
        """Make a sample of normal image n."""
        normal = self.normals[n]
        H, W = normal.shape[:2]
        if self.source is None or rng.random() >= self.anomalous_share:
            image = to_chw(normal)
            # torch.zeros is computed in parallel: its idle threads hold up numpy's and OpenCV's
            return Sample(image, image, torch.from_numpy(np.zeros((H, W), np.bool_)), n)
        source, opacity, mask = self.source(rng, normal)
        foreground, official = self.foregrounds[n], self.official
        if mask is not None:
            blended = paste_random(normal, foreground, source, mask, rng)
        else:
            blended = blend_random(
                normal, foreground, source, rng, opacity=opacity, official=official
            )
        return Sample(to_chw(blended.image), to_chw(normal), torch.from_numpy(blended.mask), n)


def find_foregrounds(normals: Images, rule: ForegroundRule) -> list[NDArray[np.bool_]]:
    """Apply a rule to images uint8 [N, H, W, 3]; UserError if it finds nothing in one of them."""
    found = [rule.apply(image) for image in normals]
    bare = sum(not mask.any() for mask in found)
    if bare:
        raise UserError(
            f"foreground: none found in {bare} of {len(normals)} normal images (rule "
            f"{rule.method}); look at them with `synth inspect --foreground`, remove them, or "
            "give --foreground everything"
        )
    return found


class JoinedDataset(Dataset[Sample]):
    """Endless samples over the normal images of several datasets, in epochs shuffled over all.

    Each image keeps its own dataset's foreground and source. Numbers run on from part to part.
    """

    def __init__(self, parts: Sequence[BlendedDataset], *, seed: int) -> None:
        self.parts, self.seed = tuple(parts), seed
        self.ends = np.cumsum([part.num_images for part in parts])

    @property
    def num_images(self) -> int:
        """How many normal images there are in all parts."""
        return int(self.ends[-1])

    def __getitem__(self, number: int) -> Sample:
        n, rng = drawn(self.seed, number, self.num_images)
        k = int(np.searchsorted(self.ends, n, side="right"))
        first = int(self.ends[k]) - self.parts[k].num_images
        return self.parts[k].sample(n - first, rng)._replace(number=n)


def drawn(seed: int, number: int, num_images: int) -> tuple[int, np.random.Generator]:
    """Which image sample `number` shows, and the generator that draws its anomaly."""
    epoch, place = divmod(number, num_images)
    n = int(shuffled(seed, epoch, num_images)[place])
    return n, np.random.default_rng(derive_seed(seed, 1, number))


@lru_cache(maxsize=2)
def shuffled(seed: int, epoch: int, num_images: int) -> NDArray[np.int64]:
    """The images of an epoch in order: int64 [num_images]; a batch may span two epochs."""
    return np.random.default_rng(derive_seed(seed, 0, epoch)).permutation(num_images)


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
    """Yield a process's share of batches first..last-1, on `device`.

    Batch b holds samples b * batch_size onwards; process r of n takes every n-th of them. Raises
    what a sample raises, also from within a worker.
    """
    shares = (
        list(range(b * batch_size + process, (b + 1) * batch_size, num_processes))
        for b in range(first, last)
    )
    pinned = device.type == "cuda"
    loader = DataLoader(dataset, batch_sampler=shares, num_workers=num_workers, pin_memory=pinned)
    try:
        for image, normal, mask, number in loader:
            image, normal, mask = (x.to(device, non_blocking=pinned) for x in (image, normal, mask))
            yield Batch(to_unit(image), to_unit(normal), mask, number)
    except UserError as error:  # a worker's comes wrapped in its traceback
        line = str(error).splitlines()[-1]
        raise UserError(line.removeprefix("synth.base.errors.UserError: ")) from None

"""Image scores and anomaly maps of many image files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detect.detector import Detector, Scores
from detect.images import to_batch
from detect.packing import packed
from detect.pooling import image_scores
from detect.scratch import Scratch
from synth.base.options import Precision
from synth.images import Progress, read_image, resize
from synth.pictures import Images

Scorer = Callable[[Images], "Scored"]
"""Images, uint8 [N, H, W, 3] RGB at the scorer's size, to their scores."""

GPU_BATCH, CPU_BATCH = 16, 4
"""Images per batch. On a processor, a single image leaves threads idle between small steps, and the
features of many images leave the caches or exceed 32 MiB, which the system takes back each time.
Milliseconds per image in batches of 1, 4 and 8: `tiny` 21, 10, 7; `compact` 25, 19, 26; `small` 62,
45, 53."""


class Scored(NamedTuple):
    """scores: float32 [N]; maps: float32 [N, H, W]; higher is more anomalous."""

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]

    @property
    def peaks(self) -> NDArray[np.float32]:
        """The pooled maps, float32 [N]: the scores of methods that have no others."""
        return image_scores(torch.from_numpy(self.maps)).numpy()


def joined(batches: Iterable[Scored]) -> Scored:
    """All batches as one."""
    scores, maps = zip(*batches, strict=True)
    return Scored(np.concatenate(scores), np.concatenate(maps))


def detector_scorer(
    detector: Detector, device: torch.device, precision: Precision = "fp32"
) -> Scorer:
    """Score with a trained detector on `device`, as it is now: packed (see `detect.packing`)."""
    fast = packed(detector, precision)

    def score(images: Images) -> Scored:
        return to_numpy(fast.predict(to_batch(images, device)))

    return score


def mean_image(
    paths: Sequence[Path], size: tuple[int, int], progress: Progress | None = None
) -> NDArray[np.float32]:
    """The mean of image files brought to `size`: float32 [H, W, 3], RGB in [0, 1]."""
    total = np.zeros((*size, 3))
    for done, path in enumerate(paths, start=1):
        total += resize(read_image(path), size)
        if progress is not None:
            progress(done, len(paths))
    return (total / (255 * len(paths))).astype(np.float32)


def mean_image_scorer(mean: NDArray[np.float32]) -> Scorer:
    """Score by the squared distance to the mean training image: the baseline that learns least.

    mean: float32 [H, W, 3]. The map is the mean over the channels; the image score is pooled.
    """

    def score(images: Images) -> Scored:
        maps = np.square(images.astype(np.float32) / 255 - mean).mean(axis=3)
        return to_numpy(Scores(image_scores(torch.from_numpy(maps)), torch.from_numpy(maps)))

    return score


def to_numpy(scores: Scores) -> Scored:
    """Bring scores to the host."""
    return Scored(scores.image.float().cpu().numpy(), scores.maps.float().cpu().numpy())


def image_batches(
    scorer: Scorer,
    image: Callable[[int], NDArray[np.uint8]],
    num_images: int,
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Scored]:
    """Score images 0 to `num_images` - 1 batch by batch, each uint8 [H, W, 3] at one size.

    batch_size: None takes GPU_BATCH or CPU_BATCH.
    """
    batch_size = batch_size or (GPU_BATCH if torch.cuda.is_available() else CPU_BATCH)
    for start in range(0, num_images, batch_size):
        numbers = range(start, min(start + batch_size, num_images))
        yield scorer(np.stack([image(number) for number in numbers]))
        if progress is not None:
            progress(numbers.stop, num_images)


def score_batches(
    scorer: Scorer,
    paths: Sequence[Path],
    size: tuple[int, int],
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Scored]:
    """Decode, resize to `size` and score files batch by batch; UserError for an unreadable one."""

    def image(number: int) -> NDArray[np.uint8]:
        return resize(read_image(paths[number]), size)

    return image_batches(scorer, image, len(paths), batch_size=batch_size, progress=progress)


class ParkedMaps:
    """Anomaly maps of one size on disk, by number: for pictures and for scores.npz."""

    def __init__(self, scratch: Scratch) -> None:
        self.shape: tuple[int, int] = (0, 0)
        self.highest = 0.0  # absolute score
        self._places: list[int] = []
        self._scratch = scratch

    def park(self, batches: Iterable[Scored]) -> Iterator[Scored]:
        """Write the maps of each batch and pass the batch on."""
        for scored in batches:
            self.shape = scored.maps.shape[1:]
            self.highest = max(self.highest, float(np.abs(scored.maps).max()))
            self._places += [self._scratch.append(anomaly_map) for anomaly_map in scored.maps]
            yield scored

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> NDArray[np.float32]:
        """Read one map, float32 [h, w]."""
        height, width = self.shape
        flat = self._scratch.read(self._places[number], height * width, np.float32)
        return flat.reshape(self.shape)

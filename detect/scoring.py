"""Image scores and anomaly maps of many image files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detect.data import to_chw, to_unit
from detect.detector import Detector, Scores
from detect.pooling import image_scores
from synth.images import Progress, read_image, resize
from synth.pictures import Images

Scorer = Callable[[Images], "Scored"]
"""Images, uint8 [N, H, W, 3] RGB at the scorer's size, to their scores."""


class Scored(NamedTuple):
    """scores: float32 [N]; maps: float32 [N, H, W]; higher is more anomalous."""

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]


def detector_scorer(detector: Detector, device: torch.device) -> Scorer:
    """Score with a trained detector."""

    def score(images: Images) -> Scored:
        batch = to_unit(torch.stack([to_chw(image) for image in images]).to(device))
        return to_numpy(detector.predict(batch))

    return score


def mean_image_scorer(training: Images) -> Scorer:
    """Score by the squared distance to the mean training image: the baseline that learns least.

    training: uint8 [N, H, W, 3]. The map is the mean over the channels; the image score pools it
    as RealNet does.
    """
    mean = training.mean(axis=0, dtype=np.float64).astype(np.float32) / 255

    def score(images: Images) -> Scored:
        maps = np.square(images.astype(np.float32) / 255 - mean).mean(axis=3)
        return to_numpy(Scores(image_scores(torch.from_numpy(maps)), torch.from_numpy(maps)))

    return score


def to_numpy(scores: Scores) -> Scored:
    """Bring scores to the host."""
    return Scored(scores.image.float().cpu().numpy(), scores.maps.float().cpu().numpy())


def score_files(
    scorer: Scorer,
    paths: Sequence[Path],
    size: tuple[int, int],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Scored:
    """Decode, resize to `size` and score files, in order; UserError for an unreadable one."""
    parts = []
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        parts.append(scorer(np.stack([resize(read_image(path), size) for path in batch])))
        if progress is not None:
            progress(start + len(batch), len(paths))
    return Scored(
        np.concatenate([p.scores for p in parts]), np.concatenate([p.maps for p in parts])
    )

"""AFS's scores and choice on disk.

The scores of all channels are cached under a digest of everything they depend on, so that another
training on the same data does not compute them again.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detect.methods.realnet.afs import AFSResult
from detect.methods.realnet.config import RealNetConfig
from synth.base import cache
from synth.base.errors import DataWarning, UserError
from synth.base.files import DAMAGE, read_json, reading, write_json

AFS_FILE = "afs.json"
SCORES_VERSION = 1
"""Version of what the cached scores are computed from, and how; scores of others are not used."""


def scores_path(about: Mapping[str, Any], config: RealNetConfig, device: torch.device) -> Path:
    """Where the scores are cached, under a digest of all that they depend on.

    about: what the samples and the backbone depend on. The kind of device counts, for its rounding.
    """
    key = {
        "version": SCORES_VERSION,
        "about": dict(about),
        "image_size": config.image_size,
        "layers": config.layer_blocks,
        "batch_size": config.batch_size,
        "num_batches": config.num_afs_batches,
        "official": config.official,
        "device": device.type,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache.cache_folder() / "afs" / f"{digest}.json"


def read_scores(path: Path, channels: Sequence[int]) -> tuple[Tensor, ...] | None:
    """The cached scores for layers of so many channels; None where there are none.

    A damaged file counts as none, with a DataWarning.
    """
    if not path.exists():
        return None
    try:
        scores = _tensors(read_json(path)["scores"])
    except (UserError, *DAMAGE):
        scores = ()
    if [tuple(score.shape) for score in scores] != [(C,) for C in channels] or any(
        math.isnan(float(score.sum())) for score in scores
    ):
        warnings.warn(f"{path}: damaged; the channels are scored again", DataWarning, stacklevel=2)
        return None
    return scores


def keep_scores(path: Path, scores: Sequence[Tensor]) -> None:
    """Write scores into the cache; a DataWarning says why where that cannot be done."""
    try:
        write_json(path, {"scores": _lists(scores)})
    except UserError as error:
        warnings.warn(f"AFS's scores are not kept: {error}", DataWarning, stacklevel=2)


def read_channels(path: Path) -> AFSResult | None:
    """What `write_channels` wrote; None where there is nothing.

    Raises UserError for a damaged file.
    """
    if not path.exists():
        return None
    cure = "delete it and run the same command again"
    saved = read_json(path, cure)
    with reading(path, cure):
        kept = tuple(torch.tensor(index, dtype=torch.int64) for index in saved["indices"])
        return AFSResult(kept, _tensors(saved["scores"]))


def write_channels(path: Path, chosen: AFSResult) -> None:
    """Write the channels that AFS keeps, and all scores, beside a detector."""
    indices = [index.tolist() for index in chosen.indices]
    write_json(path, {"indices": indices, "scores": _lists(chosen.scores)})


def _lists(scores: Sequence[Tensor]) -> list[list[float]]:
    return [score.tolist() for score in scores]


def _tensors(scores: Sequence[Sequence[float]]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(score, dtype=torch.float32) for score in scores)

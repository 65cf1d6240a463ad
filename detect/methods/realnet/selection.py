"""AFS in a training: the processes share its batches, and its scores outlive the training.

The scores of all channels lie in the user's cache under everything that they depend on: another
training on the same data, of other sizes or weights, does not compute them again.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from detect.detector import Batch
from detect.methods.realnet.afs import AFSResult, batch_losses, best_channels, mean_scores
from detect.methods.realnet.blocks import aligned
from detect.methods.realnet.config import RealNetConfig
from detect.training.data import Sample, batches
from synth.base import cache
from synth.base.backbones import Backbone
from synth.base.errors import DataWarning, UserError
from synth.base.files import read_json, write_json
from synth.base.progress import Bars
from synth.base.run_folder import agreed

AFS_FILE = "afs.json"
SCORES_VERSION = 1
"""Of what the cached scores are computed from and how; an older program's are not taken."""


def selected_channels(
    accelerator: Accelerator,
    out: Path,
    about: Mapping[str, Any],
    backbone: Backbone,
    config: RealNetConfig,
    blended: Dataset[Sample],
    bars: Bars,
) -> AFSResult:
    """The channels AFS keeps: read from `out` or from the cache, or chosen once for both.

    about: what the samples and the backbone depend on. All processes call it together and get the
    same answer, which is that of a single one. Raises UserError for a damaged file in `out`.
    """
    path = out / AFS_FILE
    chosen = agreed(accelerator, lambda: read_channels(path) if path.exists() else None)
    if chosen is None:
        scores = known_scores(accelerator, about, backbone, config, blended, bars)
        chosen = best_channels(scores, config.num_selected)
        if accelerator.is_main_process:
            indices = [index.tolist() for index in chosen.indices]
            write_json(path, {"indices": indices, "scores": _lists(chosen.scores)})
    return chosen


def known_scores(
    accelerator: Accelerator,
    about: Mapping[str, Any],
    backbone: Backbone,
    config: RealNetConfig,
    blended: Dataset[Sample],
    bars: Bars,
) -> tuple[Tensor, ...]:
    """The scores of all channels, float32 [C_k] per layer, from the cache or computed for it."""
    path = cache.cache_folder() / "afs" / f"{scores_key(about, config, accelerator.device)}.json"
    scores = agreed(accelerator, lambda: read_scores(path, backbone.channels))
    if scores is None:
        scores = shared_scores(accelerator, backbone, config, blended, bars)
        if accelerator.is_main_process:
            keep_scores(path, scores)
    return scores


def whole_layers(config: RealNetConfig, channels: Sequence[int]) -> str:
    """One line on the layers of so many channels in which AFS has nothing to choose, if any."""
    layers = config.backbone.layers
    kept = zip(layers, config.num_selected, channels, strict=True)
    whole = [f"layer {layer} ({C})" for layer, m, C in kept if m == C]
    if not whole:
        return ""
    which = "any layer" if len(whole) == len(layers) else ", ".join(whole)
    return f"AFS has nothing to choose in {which}: all channels are kept"


def shared_scores(
    accelerator: Accelerator,
    backbone: Backbone,
    config: RealNetConfig,
    blended: Dataset[Sample],
    bars: Bars,
) -> tuple[Tensor, ...]:
    """The scores of all channels, float32 [C_k] per layer.

    Process r of n computes every n-th batch. Batches stay whole, since residuals are stretched
    over a batch, and the mean is of all batches' losses at once: the number of processes does not
    show in the scores.
    """
    num, channels = config.num_afs_batches, backbone.channels
    process, num_processes = accelerator.process_index, accelerator.num_processes
    losses = torch.zeros(num, sum(channels), dtype=torch.float64)

    def features(images: Tensor) -> list[Tensor]:
        return aligned(backbone(images), config.layer_blocks)

    mine = range(process, num, num_processes)
    with bars("selecting channels", "batch") as update:
        data = whole_batches(blended, config.batch_size, mine, accelerator.device)
        for number, batch in zip(mine, data, strict=True):
            losses[number] = torch.cat(batch_losses(features, batch))
            update(min(number + num_processes, num), num)
    if num_processes > 1:
        total = accelerator.reduce(losses.to(accelerator.device), reduction="sum")
        assert isinstance(total, Tensor)
        losses = total.cpu()
    return mean_scores([row.split(list(channels)) for row in losses])


def whole_batches(
    blended: Dataset[Sample], batch_size: int, numbers: range, device: torch.device
) -> Iterator[Batch]:
    """The batches of these numbers, each as a single process would get it."""
    for number in numbers:
        yield from batches(blended, batch_size, number, number + 1, device)


# On disk


def scores_key(about: Mapping[str, Any], config: RealNetConfig, device: torch.device) -> str:
    """A digest of all that the scores depend on; the kind of device counts, for its rounding."""
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
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def read_scores(path: Path, channels: Sequence[int]) -> tuple[Tensor, ...] | None:
    """The cached scores for layers of so many channels; None where there are none.

    A damaged file is told of in a DataWarning, and counts as none.
    """
    if not path.exists():
        return None
    try:
        scores = _tensors(read_json(path)["scores"])
    except (UserError, LookupError, TypeError, ValueError):
        scores = ()
    if [tuple(score.shape) for score in scores] != [(C,) for C in channels] or any(
        math.isnan(float(score.sum())) for score in scores
    ):
        warnings.warn(f"{path}: damaged; the channels are scored again", DataWarning, stacklevel=2)
        return None
    return scores


def keep_scores(path: Path, scores: Sequence[Tensor]) -> None:
    """Write scores into the cache; where that cannot be done, a DataWarning says why."""
    try:
        write_json(path, {"scores": _lists(scores)})
    except UserError as error:
        warnings.warn(f"AFS's scores are not kept: {error}", DataWarning, stacklevel=2)


def read_channels(path: Path) -> AFSResult:
    """What `selected_channels` wrote beside a detector. Raises UserError for a damaged file."""
    match read_json(path):
        case {"indices": [*indices], "scores": [*scores]}:
            kept = tuple(torch.tensor(index, dtype=torch.int64) for index in indices)
            return AFSResult(kept, _tensors(scores))
        case _:
            raise UserError(f"{path}: damaged; delete it and run the same command again")


def _lists(scores: Sequence[Tensor]) -> list[list[float]]:
    return [score.tolist() for score in scores]


def _tensors(scores: Sequence[Sequence[float]]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(score, dtype=torch.float32) for score in scores)

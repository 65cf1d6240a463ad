"""How a RealNet is made from its data: AFS chooses channels, then features are computed once."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from detect.data.material import Material
from detect.data.samples import BlendedDataset, JoinedDataset, batches
from detect.detector import Batch
from detect.method import Recipe
from detect.methods.realnet.afs import AFSResult, best_channels, select_channels
from detect.methods.realnet.afs_files import (
    AFS_FILE,
    keep_scores,
    read_channels,
    read_scores,
    scores_path,
    write_channels,
)
from detect.methods.realnet.blocks import aligned
from detect.methods.realnet.config import PRESETS, RealNetConfig
from detect.methods.realnet.model import RealNet
from synth.base.run_folder import agreed
from synth.base.seeding import derive_seed

AFS_SEED = 0
"""Trainings of all seeds choose their channels on the same samples."""
AFS_KEY = 2


def build_realnet(config: RealNetConfig, material: Material[RealNetConfig]) -> RealNet:
    """Choose the channels, and compute the features of the normal images beforehand.

    Raises UserError as `chosen_channels`.
    """
    unchosen = whole_layers(config, material.backbone.channels)
    if unchosen:
        material.tell(unchosen)
    afs = chosen_channels(config, material)
    accelerator = material.accelerator
    detector = RealNet(config, material.backbone, afs.indices).to(accelerator.device)
    images = [*chain.from_iterable(material.images)]
    with (
        accelerator.autocast(),
        material.bars("features of the normal images", "image") as update,
    ):
        detector.remember(images, update)
    return detector


def chosen_channels(config: RealNetConfig, material: Material[Any]) -> AFSResult:
    """Return the channels AFS keeps: from the detector's folder, from the cache, or chosen now.

    All processes call it together and get the same answer, which is that of a single one. Raises
    UserError for a damaged file in the folder.
    """
    accelerator, backbone = material.accelerator, material.backbone
    own = None if material.out is None else material.out / AFS_FILE
    known = own if own is not None and material.continues else None
    afs = agreed(accelerator, lambda: None if known is None else read_channels(known))
    if afs is not None:
        return afs
    cached = scores_path(material.data, config, accelerator.device)
    scores = agreed(accelerator, lambda: read_scores(cached, backbone.channels))
    if scores is not None:
        afs = best_channels(scores, config.num_selected)
    else:

        def features(images: Tensor) -> list[Tensor]:
            return aligned(backbone(images), config.layer_blocks)

        shares = Shares(config, material)
        afs = select_channels(features, shares.batches(), config.num_selected, shares.joined)
        if accelerator.is_main_process:
            keep_scores(cached, afs.scores)
    if own is not None and accelerator.is_main_process:
        write_channels(own, afs)
    return afs


def afs_samples(config: RealNetConfig, material: Material[Any]) -> BlendedDataset | JoinedDataset:
    """The samples that channels are chosen on, all blended."""
    return material.samples(derive_seed(AFS_SEED, AFS_KEY), 1.0, config.official)


class Shares:
    """AFS's batches shared by the processes: process r of n takes every n-th.

    Batches stay whole, since residuals are stretched over a batch, and the mean is over the losses
    of all batches at once: scores do not depend on the number of processes.
    """

    def __init__(self, config: RealNetConfig, material: Material[Any]) -> None:
        self.config, self.material = config, material
        self.accelerator = material.accelerator
        first, step = self.accelerator.process_index, self.accelerator.num_processes
        self.mine = range(first, config.num_afs_batches, step)

    def batches(self) -> Iterator[Batch]:
        """Yield this process's batches, each as a single process would get it."""
        blended, num = afs_samples(self.config, self.material), self.config.num_afs_batches
        device, size = self.accelerator.device, self.config.batch_size
        with self.material.bars("selecting channels", "batch") as update:
            for number in self.mine:
                yield from batches(blended, size, number, number + 1, device)
                update(min(number + self.mine.step, num), num)

    def joined(self, losses: Sequence[Sequence[Tensor]]) -> list[Sequence[Tensor]]:
        """Bring the losses of all processes together, in the order of the batches."""
        channels = list(self.material.backbone.channels)
        rows = torch.zeros(self.config.num_afs_batches, sum(channels), dtype=torch.float64)
        for number, layers in zip(self.mine, losses, strict=True):
            rows[number] = torch.cat([*layers])
        if self.mine.step > 1:
            total = self.accelerator.reduce(rows.to(self.accelerator.device), reduction="sum")
            assert isinstance(total, Tensor)
            rows = total.cpu()
        return [row.split(channels) for row in rows]


def whole_layers(config: RealNetConfig, channels: Sequence[int]) -> str:
    """One line on the layers, of so many channels, in which AFS has nothing to choose, if any."""
    layers = config.backbone.numbers
    kept = zip(layers, config.num_selected, channels, strict=True)
    whole = [f"layer {layer} ({C})" for layer, m, C in kept if m == C]
    if not whole:
        return ""
    which = "any layer" if len(whole) == len(layers) else ", ".join(whole)
    return f"AFS has nothing to choose in {which}: all channels are kept"


RECIPE = Recipe(
    config=RealNetConfig, presets=PRESETS, build=build_realnet, restore=RealNet.from_state
)

"""The methods that a grid can train, by the names they have on the command line."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from detect.calibration import Calibration
from detect.methods.patch_nn.model import Choice, PatchNNConfig
from detect.methods.patch_nn.run import patch_nn_config, train_patch_nn
from detect.methods.realnet.config import RealNetConfig
from detect.methods.realnet.run import Product, realnet_config, train_realnet
from detect.options import TrainOptions
from detect.training.sources import OpenSource
from detect.training.stopping import JUDGES_SEED
from synth.base.backbones import BackboneConfig
from synth.base.progress import Bars
from synth.data.catalog import Category, held_out
from synth.data.normals import Normals


class Method(NamedTuple):
    """How a method is trained into a folder; config: what its options make.

    timed: title of the bar whose units are its training. facts: the options, in words. num_images:
    how many of a category's it trains on, by their names. num_steps: None for a method without.
    """

    config: Callable[[TrainOptions], RealNetConfig | PatchNNConfig]
    train: Callable[[Normals, OpenSource, TrainOptions, Path, Bars], Calibration | None]
    timed: str
    facts: Callable[[TrainOptions], str]
    num_images: Callable[[TrainOptions, Category], int]
    num_steps: Callable[[TrainOptions, int], int | None]
    takes_source: bool = True


def train_one_realnet(
    normals: Normals, source: OpenSource, options: TrainOptions, out: Path, bars: Bars
) -> Calibration | None:
    """A RealNet of one category."""
    return train_realnet([Product(normals, source)], options, out, bars)


def realnet_facts(options: TrainOptions) -> str:
    """Preset and what was chosen besides."""
    config = realnet_config(options)
    height, width = config.image_size
    epochs, steps = config.num_epochs, config.num_steps
    length = f"{steps} steps" if epochs is None else f"{epochs} epochs"
    return (
        f"RealNet {options.preset}, {height} x {width} px, {length} of {config.batch_size} images, "
        f"{backbone_facts(config.backbone)}"
    )


def realnet_images(options: TrainOptions, category: Category) -> int:
    """Those that neither set the threshold nor judge when to stop."""
    fit, _ = held_out(category)
    if options.patience is not None:
        fit, _ = held_out(replace(category, records=tuple(fit)), seed=JUDGES_SEED)
    return len(fit)


def realnet_steps(options: TrainOptions, num_images: int) -> int:
    """At most, with --patience."""
    return realnet_config(options).for_images(num_images).num_steps


def patch_nn(choice: Choice) -> Method:
    """The baseline with one of its ways to choose patches."""

    def facts(options: TrainOptions) -> str:
        config = patch_nn_config(options, choice)
        height, width = config.image_size
        return (
            f"nearest neighbour of patches, {height} x {width} px, {choice} bank of up to "
            f"{config.bank_size:,} patches, {backbone_facts(config.backbone)}"
        )

    return Method(
        partial(patch_nn_config, choice=choice),
        partial(train_patch_nn, choice=choice),
        "filling the bank",
        facts,
        lambda options, category: len(held_out(category)[0]),
        lambda options, num_images: None,
        takes_source=False,
    )


def backbone_facts(config: BackboneConfig) -> str:
    """Which network, weights and layers."""
    layers = ", ".join(map(str, config.layers))
    return f"{config.name} ({Path(config.weights).name} weights), layers {layers}"


METHODS: Mapping[str, Method] = {
    "realnet": Method(
        realnet_config,
        train_one_realnet,
        "training",
        realnet_facts,
        realnet_images,
        realnet_steps,
    ),
    "patch-nn": patch_nn("random"),
    "patch-nn-coreset": patch_nn("coreset"),
}

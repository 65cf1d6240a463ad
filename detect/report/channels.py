"""AFS's choice made visible: every channel's score, and what its residual shows.

Shapes: layer k has C_k channels on h_k x w_k pixels, of which m_k are kept.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.utils.data import Dataset

from detect.data.material import Material, Product, prepare_material
from detect.data.samples import Sample
from detect.images import to_unit
from detect.methods.realnet.afs import AFSResult, FeatureExtractor
from detect.methods.realnet.recipe import afs_samples, chosen_channels
from detect.options import TrainOptions
from synth.base.device import make_accelerator
from synth.base.files import atomic_path
from synth.base.progress import Bars
from synth.quality.plot import DOTS_PER_INCH, LOOK

KEPT, DROPPED, TEXT = "#2563eb", "#9ca3af", "#4b5563"
COVERAGE, NUM_CANDIDATES = 0.1, 16
"""The anomalous share of the example to come closest to, and the samples to choose it from."""
TABLE_FIELDS = ("layer", "channel", "score", "rank", "kept")


class LayerScores(NamedTuple):
    """The scores of one layer's channels, float32 [C_k], and the int64 [m_k] that are kept."""

    number: int
    scores: Tensor
    kept: Tensor

    @property
    def order(self) -> list[int]:
        """All channels, the best one first."""
        return self.scores.argsort(stable=True).tolist()

    @property
    def shown(self) -> dict[str, int]:
        """The channels to look at: the best, the last one kept and the worst."""
        order = self.order
        return {"best": order[0], "at the cut": order[len(self.kept) - 1], "worst": order[-1]}

    @property
    def sentence(self) -> str:
        """How many are kept, and their scores."""
        C, m = len(self.scores), len(self.kept)
        values = ", ".join(
            f"{name} {float(self.scores[channel]):.4f}" for name, channel in self.shown.items()
        )
        nothing = "; AFS has nothing to choose" if m == C else ""
        return f"layer {self.number}: {m} of {C} channels kept; scores: {values}{nothing}"


def show_channels(product: Product, options: TrainOptions, out: Path, bars: Bars) -> list[str]:
    """Choose channels as a training does, and write channels.csv and channels.png into `out`.

    Returns a line for each layer, and one for comparison. Raises UserError as `prepare_material`.
    """
    accelerator, prepared = make_accelerator("fp32"), prepare_material([product], options)
    config, backbone = prepared.config, prepared.backbone.to(accelerator.device)
    material = Material(accelerator=accelerator, products=[product], prepared=prepared, bars=bars)
    layers = by_layer(config.backbone.numbers, chosen_channels(config, material))
    write_table(out / "channels.csv", layers)
    blended = afs_samples(config, material)
    sample = example_of(blended)
    maps = residuals(backbone, sample, accelerator.device)
    empty = empty_score(blended, config.num_afs_batches * config.batch_size)
    write_picture(out / "channels.png", layers, empty, sample, maps)
    lines = [layer.sentence for layer in layers]
    return [*lines, f"a channel that shows nothing would score {empty:.4f}"]


def by_layer(layers: Sequence[int], chosen: AFSResult) -> list[LayerScores]:
    """Split a choice of channels by layer, with the layers' numbers."""
    return [
        LayerScores(number, scores, kept)
        for number, scores, kept in zip(layers, chosen.scores, chosen.indices, strict=True)
    ]


def write_table(path: Path, layers: Sequence[LayerScores]) -> None:
    """Write a CSV row per channel. Ranks count from 1, the best channel of its layer."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(TABLE_FIELDS)
        for layer in layers:
            kept = set(layer.kept.tolist())
            ranks = {channel: rank for rank, channel in enumerate(layer.order, start=1)}
            for channel, score in enumerate(layer.scores.tolist()):
                table.writerow([layer.number, channel, score, ranks[channel], channel in kept])


def example_of(blended: Dataset[Sample]) -> Sample:
    """Of the first few samples, the one whose mask covers closest to COVERAGE of the image."""
    samples = [blended[number] for number in range(NUM_CANDIDATES)]
    return min(samples, key=lambda sample: abs(float(sample.mask.float().mean()) - COVERAGE))


def empty_score(blended: Dataset[Sample], num_samples: int) -> float:
    """The score of a channel that shows nothing: the anomalous share of the samples' pixels."""
    shares = [float(blended[number].mask.float().mean()) for number in range(num_samples)]
    return sum(shares) / num_samples


@torch.no_grad()
def residuals(features: FeatureExtractor, sample: Sample, device: torch.device) -> list[Tensor]:
    """|phi_k(A) - phi_k(I)|^2 of one sample, float32 [C_k, h_k, w_k] per layer, on the CPU."""
    both = to_unit(torch.stack([sample.image, sample.normal]).to(device))
    return [(phi[0].float() - phi[1].float()).square().cpu() for phi in features(both)]


def write_picture(
    path: Path,
    layers: Sequence[LayerScores],
    empty: float,
    sample: Sample,
    maps: Sequence[Tensor],
) -> None:
    """Write a PNG: a row per layer, its sorted scores beside the example's mask and residuals.

    empty: the score of a channel that shows nothing. maps: the example's `residuals`. Raises as
    `atomic_path`.
    """
    with style.context(LOOK), atomic_path(path) as partial:
        figure = Figure(figsize=(12.5, 2.6 * len(layers) + 0.3), layout="constrained")
        rows = figure.subplots(len(layers), 6, squeeze=False, width_ratios=[2.2, 1, 1, 1, 1, 1])
        for panels, layer, d in zip(rows, layers, maps, strict=True):
            score_curve(panels[0], layer, empty)
            picture(panels[1], sample.image.permute(1, 2, 0).numpy(), "blended image")
            picture(panels[2], sample.mask.numpy(), "its mask")
            for panel, (name, channel) in zip(panels[3:], layer.shown.items(), strict=True):
                picture(panel, d[channel].numpy(), f"{name}: channel {channel}")
        rows[-1][0].set_xlabel("Channels, the best first")
        figure.savefig(partial, format="png", dpi=DOTS_PER_INCH)


def score_curve(axes: Axes, layer: LayerScores, empty: float) -> None:
    """Plot all scores in ascending order, with the kept ones highlighted."""
    scores = np.sort(layer.scores.numpy())
    scores = scores[np.isfinite(scores)]
    m, ranks = len(layer.kept), np.arange(1, len(scores) + 1)
    axes.axvspan(0.5, m + 0.5, color=KEPT, alpha=0.08, linewidth=0)
    axes.axhline(empty, color=DROPPED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        "shows nothing", (0.02, empty), xycoords=("axes fraction", "data"), fontsize=8.5,
        xytext=(0, 3), textcoords="offset points", color=TEXT,
    )  # fmt: skip
    axes.plot(ranks, scores, color=DROPPED, linewidth=1.8)
    axes.plot(ranks[:m], scores[:m], color=KEPT, linewidth=1.8)
    axes.set_xlim(0.5, len(layer.scores) + 0.5)
    axes.margins(y=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.set_ylabel("Misfit to the mask")
    axes.set_title(
        f"layer {layer.number}: {m} of {len(layer.scores)} kept", fontsize=11, loc="left"
    )


def picture(axes: Axes, image: np.ndarray, title: str) -> None:
    """Show an image without axes; one channel in grey, from its smallest to its largest value."""
    axes.imshow(image, cmap="gray", interpolation="nearest")
    axes.set_title(title, fontsize=9.5)
    axes.set_axis_off()

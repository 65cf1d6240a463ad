"""The curve of distance to normal against strength, as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from synth.base.files import atomic_path
from synth.quality.groups import Examined, Group
from synth.quality.kid import Measured

MODEL, FOLDER, NORMAL = "#2563eb", "#ea6a12", "#4b5563"
LOOK = {
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
DOTS_PER_INCH = 130
MAX_DOTS = 3000


def write_distance_plot(
    path: Path,
    normal: Group,
    samples: Sequence[Group],
    folder: Sequence[Group],
    images: Examined | None,
) -> None:
    """Write a PNG: KID and distance against strength, above them, where known, the folder's images.

    normal: the held-out images, drawn as a band. images: of the folder, each a dot. Raises as
    `atomic_path`.
    """
    histogram = images is not None and bool(folder)
    heights = [3.0, 3.4, 1.5][: 3 if histogram else 2]
    with style.context(LOOK), atomic_path(path) as partial:
        figure = Figure(figsize=(8.2, sum(heights) + 0.9), layout="constrained")
        panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        lines = [("samples of the model", MODEL, samples), ("the folder's images", FOLDER, folder)]
        for group_name, colour, groups in lines:
            if groups:
                curve(panels[0], group_name, colour, [(g.strength, g.kid) for g in groups])
                curve(panels[1], group_name, colour, [(g.strength, g.quality) for g in groups])
        band(panels[0], normal.kid)
        band(panels[1], normal.quality)
        if histogram:
            assert images is not None
            dots(panels[1], images)
            known = images.strengths[~np.isnan(images.strengths)]
            panels[2].hist(known, bins=30, color=FOLDER, alpha=0.6)
            panels[2].set_ylabel("Images")
            panels[2].yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        panels[0].set_ylabel("KID")
        panels[1].set_ylabel("Distance to nearest\ntraining image")
        panels[1].set_ylim(bottom=0)
        panels[-1].set_xlabel("Strength s")
        named = panels[1].get_legend_handles_labels()  # KID may be unknown, this never is
        panels[0].legend(*named, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
        figure.savefig(partial, format="png", dpi=DOTS_PER_INCH)


def curve(
    axes: Axes,
    label: str,
    colour: str,
    points: Sequence[tuple[float | None, Measured | None]],
) -> None:
    """Values with their standard errors, where there is one."""
    known = [(s, m) for s, m in points if s is not None and m is not None]
    if known:
        axes.errorbar(
            [s for s, _ in known],
            [m.value for _, m in known],
            [m.error or 0 for _, m in known],
            color=colour,
            marker="o",
            markersize=5,
            capsize=3,
            linewidth=1.6,
            label=label,
            zorder=3,
        )


def band(axes: Axes, floor: Measured | None) -> None:
    """Where held-out normal images lie: value and standard error."""
    if floor is None:
        return
    low, high = (floor.value + sign * (floor.error or 0) for sign in (-1, 1))
    axes.axhspan(low, high, color=NORMAL, alpha=0.18, linewidth=0)
    axes.axhline(floor.value, color=NORMAL, linewidth=1.2, label="held-out normal images")


def dots(axes: Axes, images: Examined) -> None:
    """The images of a folder; of very many, an even selection."""
    num = len(images.quality)
    few = np.arange(min(num, MAX_DOTS)) * num // min(num, MAX_DOTS)
    axes.scatter(
        images.strengths[few], images.quality[few], s=6, color=FOLDER, alpha=0.35, linewidth=0
    )

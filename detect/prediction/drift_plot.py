"""The figure of a drift test: both distributions of scores, the threshold, the largest distance."""

from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from detect.prediction.drift import Drift
from synth.base.files import atomic_path

HELD_OUT, RECENT, INK = "#3b82f6", "#f97316", "#1f2430"
LOOK = {
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}


def write_drift_plot(path: Path, drift: Drift) -> None:
    """Draw the share of images up to each score, for held-out and recent images, as a PNG."""
    with style.context(LOOK), atomic_path(path) as partial:
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        held = np.asarray(drift.calibration.scores)
        axes.ecdf(held, color=HELD_OUT, label=f"held-out normal images ({len(held)})")
        axes.ecdf(drift.scores, color=RECENT, label=f"recent images ({len(drift.scores)})")
        threshold = drift.calibration.threshold
        axes.axvline(threshold, color=INK, linestyle=(0, (4, 2)), linewidth=1.2, label="threshold")
        ends = [np.mean(scores <= drift.place) for scores in (held, drift.scores)]
        axes.plot([drift.place] * 2, ends, color=INK, linewidth=2.5, label="largest distance D")
        axes.set(
            xlabel="Image score", ylabel="Share of images up to this score", ylim=(-0.02, 1.02)
        )
        axes.set_title(drift.finding, loc="left", weight="bold")
        figure.legend(loc="outside lower center", ncols=4)
        figure.savefig(partial, format="png", dpi=150)

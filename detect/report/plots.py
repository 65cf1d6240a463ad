"""The pages' figures, as inline SVG that takes its ink and its font from the page around it."""

import io
import re

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detect.evaluation.metrics import Curve
from detect.grid.table import Table

NORMAL, ANOMALOUS = "#3b82f6", "#f97316"  # blue and orange: seen on light and dark, by all eyes
INK = "#010203"  # a stand-in colour, replaced by the page's own text colour
LOOK = {
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}
THRESHOLD_LINE = {"linewidth": 1.4, "linestyle": (0, (4, 2))}
LEAST_SPAN = 0.02
"""Of an axis of metrics: a difference of a thousandth must not look large."""


def roc_plot(image_roc: Curve, pixel_roc: Curve | None) -> str:
    """Draw both ROC curves in one figure: SVG text."""
    with style.context(LOOK | {"svg.hashsalt": "roc"}):
        figure = Figure(figsize=(4.8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.35, linewidth=1, linestyle="--")
        axes.plot(*image_roc, color=ANOMALOUS, label="images")
        if pixel_roc is not None:
            axes.plot(*pixel_roc, color=NORMAL, label="pixels")
        _frame(axes, 1.0, "True-positive rate")
        axes.legend(loc="lower right")
        return to_svg(figure)


def pro_plot(pro: Curve, fpr_limit: float) -> str:
    """Draw the PRO curve up to its limit with the area under it shaded: SVG text."""
    with style.context(LOOK | {"svg.hashsalt": "pro"}):
        figure = Figure(figsize=(4.8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.fill_between(*pro, color=NORMAL, alpha=0.15, linewidth=0)
        axes.plot(*pro, color=NORMAL)
        _frame(axes, fpr_limit, "Mean overlap of regions (PRO)")
        return to_svg(figure)


def score_plot(
    defects: tuple[str, ...], scores: npt.NDArray[np.floating], threshold: float, normal: str
) -> str:
    """Draw the score histogram over one row of dots per defect type, with the threshold: SVG text.

    defects: each image's type, `normal` for a good one; scores: float [N].
    """
    types = np.asarray(defects)
    rows = [normal, *sorted(set(defects) - {normal})]
    heights = (2.3, 0.4 + 0.3 * len(rows))  # inches
    with style.context(LOOK | {"svg.hashsalt": "scores"}):
        figure = Figure(figsize=(9.6, sum(heights) + 0.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        _histogram(upper, scores, types == normal, threshold)
        _dots(lower, {row: scores[types == row] for row in rows}, threshold)
        return to_svg(figure)


def _histogram(
    axes: Axes, scores: npt.NDArray[np.floating], is_normal: npt.NDArray[np.bool_], threshold: float
) -> None:
    edges = _edges(scores, threshold)
    axes.hist(scores[is_normal], edges, color=NORMAL, alpha=0.6, label="good")
    axes.hist(scores[~is_normal], edges, color=ANOMALOUS, alpha=0.6, label="defective")
    axes.axvline(threshold, color=INK, label="threshold", **THRESHOLD_LINE)
    axes.set_ylabel("Test images")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.tick_params(axis="x", length=0)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)


def _dots(axes: Axes, rows: dict[str, npt.NDArray[np.floating]], threshold: float) -> None:
    """One row per type, `normal` first; the spread within a row only keeps dots apart."""
    for row, values in enumerate(rows.values()):
        spread = (np.arange(len(values)) * 0.618) % 1 - 0.5  # golden ratio: even, no clumps
        colour = ANOMALOUS if row else NORMAL
        axes.scatter(values, row + 0.5 * spread, s=14, color=colour, alpha=0.7, linewidth=0)
    axes.axvline(threshold, color=INK, **THRESHOLD_LINE)
    axes.set_yticks(range(len(rows)), labels=list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("Image score")


def _edges(scores: npt.NDArray[np.floating], threshold: float, num_bins: int = 40) -> list[float]:
    """Equal bins with an edge on the threshold, so that no bar lies on both sides of it."""
    low, high = min(float(scores.min()), threshold), max(float(scores.max()), threshold)
    width = (high - low) / num_bins or 1.0
    first, last = np.floor((low - threshold) / width), np.ceil((high - threshold) / width)
    return (threshold + width * np.arange(first, last + 2)).tolist()


def _frame(axes: Axes, limit: float, ylabel: str) -> None:
    axes.set_xlim(-0.01 * limit, 1.01 * limit)
    axes.set_ylim(-0.01, 1.02)
    axes.set_xlabel("False-positive rate")
    axes.set_ylabel(ylabel)


def grid_svg(table: Table) -> str:
    """Draw a grid's trainings for a page: SVG text."""
    with style.context(LOOK | {"svg.hashsalt": "grid"}):
        return to_svg(draw_grid(table))


def grid_png(table: Table) -> bytes:
    """Draw a grid's trainings for Markdown, black on white."""
    look = {key: "black" if value == INK else value for key, value in LOOK.items()}
    buffer = io.BytesIO()
    with style.context(look):
        draw_grid(table).savefig(buffer, format="png", dpi=120, facecolor="white")
    return buffer.getvalue()


def draw_grid(table: Table) -> Figure:
    """One panel per headline metric, with the first entry in another colour."""
    columns = table.headlines
    figure = Figure(figsize=(9.6, 1.0 + 0.42 * len(table.entries)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        _training_dots(axes, table, column)
        low, high = axes.get_xlim()
        middle, half = (low + high) / 2, max(high - low, LEAST_SPAN) / 2
        axes.set_xlim(middle - half, middle + half)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(column)
        axes.tick_params(axis="y", length=0)
    return figure


def _training_dots(axes: Axes, table: Table, column: str) -> None:
    """A dot per seed (the mean over the categories) and a bar at their mean, a row per entry."""
    for row, name in enumerate(table.entries):
        values = np.array(table.by_seed(name, column))
        colour = ANOMALOUS if row == 0 and len(table.entries) > 1 else NORMAL
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
        axes.scatter(values, row + spread, s=22, color=colour, alpha=0.8, linewidth=0, zorder=3)
        axes.vlines(values.mean(), row - 0.32, row + 0.32, color=colour, linewidth=2)
    axes.set_yticks(range(len(table.entries)), labels=list(table.entries))
    axes.set_ylim(len(table.entries) - 0.5, -0.5)


def to_svg(figure: Figure) -> str:
    """Reduce the file to its svg element: no addresses, no dates, no ids but the ones in use."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    used = set(re.findall(r"#(\w+)", text))
    return re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)

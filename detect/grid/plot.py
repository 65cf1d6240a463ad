"""The plot of a grid: every training a dot, a row per entry."""

import io

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detect.grid.table import Table
from detect.grid.text import HEADLINES
from detect.report.plots import ANOMALOUS, INK, LOOK, NORMAL, to_svg

LEAST_SPAN = 0.02
"""Of an axis: a difference of a thousandth shall not look like one."""


def plot_svg(table: Table, *, mark_first: bool) -> str:
    """Draw for a page, in its own ink: SVG text. mark_first: the others are compared with it."""
    with style.context(LOOK | {"svg.hashsalt": "grid"}):
        return to_svg(draw(table, mark_first))


def plot_png(table: Table, *, mark_first: bool) -> bytes:
    """Draw for Markdown, black on white."""
    look = {key: "black" if value == INK else value for key, value in LOOK.items()}
    buffer = io.BytesIO()
    with style.context(look):
        draw(table, mark_first).savefig(buffer, format="png", dpi=120, facecolor="white")
    return buffer.getvalue()


def draw(table: Table, mark_first: bool) -> Figure:
    """One panel per metric of HEADLINES that was measured."""
    columns = [name for name in HEADLINES if name in table.columns]
    figure = Figure(figsize=(9.6, 1.0 + 0.42 * len(table.entries)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        draw_panel(axes, table, column, mark_first)
    return figure


def draw_panel(axes: Axes, table: Table, column: str, mark_first: bool) -> None:
    """Dots of trainings (means over the categories) and a bar at their mean, per entry."""
    for row, name in enumerate(table.entries):
        values = np.array(table.by_seed(name, column))
        colour = ANOMALOUS if mark_first and row == 0 else NORMAL
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
        axes.scatter(values, row + spread, s=22, color=colour, alpha=0.8, linewidth=0, zorder=3)
        axes.vlines(values.mean(), row - 0.32, row + 0.32, color=colour, linewidth=2)
    axes.set_yticks(range(len(table.entries)), labels=list(table.entries))
    axes.set_ylim(len(table.entries) - 0.5, -0.5)
    low, high = axes.get_xlim()
    middle, half = (low + high) / 2, max(high - low, LEAST_SPAN) / 2
    axes.set_xlim(middle - half, middle + half)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(column)
    axes.tick_params(axis="y", length=0)

"""The plot of a grid: every training a dot, a row per entry."""

import io

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detect.grid.tables import Table
from detect.grid.text import HEADLINES
from detect.report.plots import ANOMALOUS, INK, LOOK, NORMAL, to_svg

COLOURS = (ANOMALOUS, NORMAL)
"""Of the first entry, which the others are compared with, and of the others."""


def plot_svg(table: Table) -> str:
    """Draw for a page, in its own ink: SVG text."""
    with style.context(LOOK | {"svg.hashsalt": "grid"}):
        return to_svg(draw(table))


def plot_png(table: Table) -> bytes:
    """Draw for Markdown, black on white."""
    look = {key: "black" if value == INK else value for key, value in LOOK.items()}
    buffer = io.BytesIO()
    with style.context(look):
        draw(table).savefig(buffer, format="png", dpi=120, facecolor="white")
    return buffer.getvalue()


def draw(table: Table) -> Figure:
    """One panel per metric of HEADLINES that was measured."""
    columns = [name for name in HEADLINES if name in table.columns]
    figure = Figure(figsize=(9.6, 1.0 + 0.42 * len(table.entries)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        draw_panel(axes, table, column)
    return figure


def draw_panel(axes: Axes, table: Table, column: str) -> None:
    """Dots of trainings (means over the categories) and a bar at their mean, per entry."""
    for row, name in enumerate(table.entries):
        values = np.array(table.by_seed(name, column))
        colour = COLOURS[min(row, 1)]
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
        axes.scatter(values, row + spread, s=22, color=colour, alpha=0.8, linewidth=0, zorder=3)
        axes.vlines(values.mean(), row - 0.32, row + 0.32, color=colour, linewidth=2)
    axes.set_yticks(range(len(table.entries)), labels=list(table.entries))
    axes.set_ylim(len(table.entries) - 0.5, -0.5)
    axes.set_xlabel(column)
    axes.tick_params(axis="y", length=0)

"""What a grid would do, in words: cells done and left, their sizes, and the time they may take."""

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from detect.grid.cells import Result
from detect.grid.methods import METHODS
from detect.grid.plan import Cell, Plan
from detect.grid.run import device_name
from detect.grid.text import duration
from synth.base.device import default_device
from synth.base.run_folder import num_steps_done
from synth.data.catalog import Category


class Work(NamedTuple):
    """How much there is to do in a cell. steps: None for a method that has none."""

    num_images: int
    steps: int | None
    done: int

    @property
    def size(self) -> int:
        """What its time grows with."""
        return self.num_images if self.steps is None else self.steps


class Planned(NamedTuple):
    """A cell with its work and, where it is finished, its result."""

    cell: Cell
    category: Category
    work: Work
    result: Result | None

    @property
    def state(self) -> str:
        """In two or three words."""
        if self.result is not None:
            return "done"
        return f"at step {self.work.done}" if self.work.done else "left"


def planned(plan: Plan) -> list[Planned]:
    """All cells; copies among the images, which only show when they are opened, are not known."""
    found: list[Planned] = []
    for category, row in plan.cells.items():
        for cell, result in zip(row, plan.found[category], strict=True):
            method = METHODS[cell.entry.method]
            num_images = method.num_images(cell.options, category)
            steps = method.num_steps(cell.options, num_images)
            work = Work(num_images, steps, num_steps_done(cell.folder / cell.entry.method))
            found.append(Planned(cell, category, work, result))
    return found


def preview(plan: Plan) -> str:
    """A line for every entry and category, a column for every seed; and the time left."""
    every = planned(plan)
    num_done = sum(one.result is not None for one in every)
    seeds = list(dict.fromkeys(one.cell.options.seed for one in every))
    head = ["", "", "to train on", "to test", "steps", *(f"seed {seed}" for seed in seeds)]
    rows = {}
    for one in every:
        key = (one.cell.entry.name, one.category.name)
        steps = "–" if one.work.steps is None else str(one.work.steps)
        sizes = [str(one.work.num_images), str(len(one.category.test)), steps]
        rows.setdefault(key, [*key, *sizes]).append(one.state)
    return "\n".join(
        [
            f"{plan.study.title}: {len(every)} trainings, {num_done} done, "
            f"{len(every) - num_done} left",
            *aligned([head, *rows.values()]),
            time_left(every),
        ]
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equally many cells as lines, columns padded; numbers and states to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    names = [f"{{:{width}}}" for width in widths[:2]]
    values = [f"{{:>{width}}}" for width in widths[2:]]
    return ["  ".join([*names, *values]).format(*row) for row in rows]


def time_left(every: Sequence[Planned]) -> str:
    """One line on the training that is left, by the cells that were measured on this device."""
    device = device_name(default_device())
    left = [one for one in every if one.result is None]
    if not left:
        return "nothing is left to train"
    measured = [one for one in every if one.result is not None and one.result.device == device]
    seconds = [value for one in left if (value := seconds_left(one, measured)) is not None]
    if not seconds:
        return f"time: unknown, none of these methods has been measured on {device} yet"
    return (
        f"time: about {duration(sum(seconds))} of training for {len(seconds)} of the {len(left)} "
        f"left, by those measured on {device}; loading and scoring come on top"
    )


def seconds_left(one: Planned, measured: Sequence[Planned]) -> float | None:
    """The time per step (or image) of the entry's own cells, of the same category if there are any.

    None where none was measured.
    """
    own = [other for other in measured if other.cell.entry.name == one.cell.entry.name]
    same = [other for other in own if other.category is one.category]
    rates = [
        other.result.cost.training_seconds / other.work.size
        for other in same or own
        if other.result is not None and other.result.cost.training_seconds is not None
    ]
    return mean(rates) * (one.work.size - one.work.done) if rates else None

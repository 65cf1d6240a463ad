"""What the cells of a grid say together: means, spreads and paired differences."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, stdev
from typing import NamedTuple

from scipy.special import stdtr

from detect.evaluation.report_data import COLUMNS, Comparison
from detect.grid.cells import Cost, Result

ALPHA = 0.05
"""How often a table without any real difference has one that is told from chance, at most."""
ROUNDING = 1e-9
"""Values that differ by less are the same."""


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1) of n values; deviation None for a single one."""

    mean: float
    deviation: float | None
    num: int

    @property
    def p_value(self) -> float:
        """Of a two-sided t-test against 0; 1 for what has no spread: a single value, equal ones."""
        if self.deviation is None or self.deviation < ROUNDING:
            return 1.0
        t = abs(self.mean) * self.num**0.5 / self.deviation
        return 2 * float(stdtr(self.num - 1, -t))


def spread(values: Sequence[float]) -> Spread:
    """Mean and spread of one value or more."""
    deviation = stdev(values) if len(values) > 1 else None
    return Spread(mean(values), deviation, len(values))


def holm(p_values: Sequence[float]) -> list[bool]:
    """Which of several tests tell a difference, with a chance of any mistake of ALPHA at most.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    told = [False] * len(p_values)
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[place] > ALPHA / (len(p_values) - rank):
            break
        told[place] = True
    return told


@dataclass(frozen=True)
class Table:
    """All results of a grid: one for every entry, category and seed."""

    results: tuple[Result, ...]

    @cached_property
    def entries(self) -> tuple[str, ...]:
        """The rows, in the order asked for."""
        return tuple(dict.fromkeys(result.entry for result in self.results))

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The categories, in the order asked for."""
        return tuple(dict.fromkeys(result.category for result in self.results))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, in the order asked for."""
        return tuple(dict.fromkeys(result.seed for result in self.results))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The metrics that every result has."""
        return tuple(
            name for name in COLUMNS if all(metric(row, name) is not None for row in self.results)
        )

    def by_seed(self, entry: str, column: str, category: str | None = None) -> list[float]:
        """One value per seed: the mean over the categories, or that of one."""
        names = self.categories if category is None else (category,)
        return [
            mean(
                value
                for row in self.results
                if (row.entry, row.seed) == (entry, seed) and row.category in names
                if (value := metric(row, column)) is not None
            )
            for seed in self.seeds
        ]

    def metric(self, entry: str, column: str, category: str | None = None) -> Spread:
        """Mean and spread over seeds."""
        return spread(self.by_seed(entry, column, category))

    def difference(self, entry: str, column: str) -> Spread:
        """What an entry has more than the first, seed by seed: its mean and spread."""
        first = self.by_seed(self.entries[0], column)
        pairs = zip(self.by_seed(entry, column), first, strict=True)
        return spread([own - other for own, other in pairs])

    def cost(self, entry: str, field: Callable[[Cost], float | None]) -> float | None:
        """The mean over all cells of an entry; None where any was not measured."""
        values = [field(row.cost) for row in self.results if row.entry == entry]
        known = [value for value in values if value is not None]
        return mean(known) if len(known) == len(values) else None


def metric(result: Result, column: str) -> float | None:
    """One metric of a result, by its name in a table."""
    return COLUMNS[column](Comparison(result.entry, result.image, result.pixel))

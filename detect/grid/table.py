"""What the trainings of a grid say together: means, spreads and paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Literal

from scipy.special import stdtr

from detect.evaluation.report_data import COLUMNS, Comparison
from detect.evaluation.seeds import Spread, mean_and_deviation
from detect.grid.result import Cost, Result

HEADLINES = ("image AUROC", "AUPRO")
"""The metrics whose differences are judged: which images are defective, and where."""
ALPHA = 0.05
"""Chance that a table without any real difference has one that is called significant, at most."""
ROUNDING = 1e-9
"""Values that differ by less are the same."""

Judgement = Literal["significant", "not significant", "exact"]
"""exact: neither row depends on the seed, so that no chance is involved."""


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p-value of paired differences, one per seed, against 0; 1 for a single one.

    Student's t-test. Identical differences leave it no spread to judge by; they get the exact
    sign-flip test, in which 2 of the 2^n patterns of signs are as extreme as the one observed.
    """
    num, (centre, deviation) = len(differences), mean_and_deviation(differences)
    if deviation is None or deviation < ROUNDING:
        return 1.0 if abs(centre) < ROUNDING else 2.0 ** (1 - num)
    return 2 * float(stdtr(num - 1, -abs(centre) * num**0.5 / deviation))


def holm(p_values: Sequence[float]) -> list[bool]:
    """Decide which of several tests are significant, with a chance of any mistake of ALPHA at most.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    significant = [False] * len(p_values)
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[place] > ALPHA / (len(p_values) - rank):
            break
        significant[place] = True
    return significant


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

    @property
    def headlines(self) -> tuple[str, ...]:
        """Those of HEADLINES that every result has."""
        return tuple(name for name in HEADLINES if name in self.columns)

    def by_seed(self, entry: str, column: str, category: str | None = None) -> list[float]:
        """One value per seed: the mean over the categories, or the value of one category."""
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

    def over_seeds(self, entry: str, column: str, category: str | None = None) -> Spread:
        """Mean and spread over the seeds."""
        return mean_and_deviation(self.by_seed(entry, column, category))

    def differences(self, entry: str, column: str) -> list[float]:
        """How much more an entry has than the first one, seed by seed."""
        first = self.by_seed(self.entries[0], column)
        pairs = zip(self.by_seed(entry, column), first, strict=True)
        return [own - other for own, other in pairs]

    def difference(self, entry: str, column: str) -> Spread:
        """Mean and spread of `differences`."""
        return mean_and_deviation(self.differences(entry, column))

    def is_exact(self, entry: str, column: str) -> bool:
        """Whether neither the entry nor the first one changes with the seed, of two or more."""
        deviations = [self.over_seeds(name, column)[1] for name in (entry, self.entries[0])]
        return all(each is not None and each < ROUNDING for each in deviations)

    def judged(self) -> dict[tuple[str, str], Judgement]:
        """Judge each later entry's difference to the first one, by entry and headline metric.

        Exact differences need no test; the paired tests of all others share Holm's correction.
        """
        pairs = [(name, column) for name in self.entries[1:] for column in self.headlines]
        tested = [pair for pair in pairs if not self.is_exact(*pair)]
        significant = holm([p_value(self.differences(*pair)) for pair in tested])
        found: dict[tuple[str, str], Judgement] = dict.fromkeys(pairs, "exact")
        for pair, yes in zip(tested, significant, strict=True):
            found[pair] = "significant" if yes else "not significant"
        return found

    def cost(self, entry: str, field: str) -> float | None:
        """The mean of a field of `Cost` over an entry's trainings that have it; None without."""
        place = Cost._fields.index(field)
        values = [row.cost[place] for row in self.results if row.entry == entry]
        known = [value for value in values if value is not None]
        return mean(known) if known else None


def metric(result: Result, column: str) -> float | None:
    """One metric of a result, by its name in a table."""
    return COLUMNS[column](Comparison(result.entry, result.image, result.pixel))

"""Several trainings of one detector: what their figures have in common, and how far they scatter.

A figure of one training says little about the next one. Over trainings that differ in their seeds
the mean and the sample standard deviation (n - 1) say what to expect.
"""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from detect.evaluation.metrics import ImageMetrics, PixelMetrics
from synth.base.errors import UserError
from synth.base.files import config_differences


class Training(NamedTuple):
    """The figures of one training; name: its folder's."""

    name: str
    seed: int
    image: ImageMetrics
    pixel: PixelMetrics | None


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1) over trainings; no deviation for a single one."""

    mean: float
    deviation: float | None


class Seeds(NamedTuple):
    """Several trainings; the spreads are by the metrics' fields.

    differing: in which fields of their configurations the trainings differ, such as "seed".
    """

    trainings: tuple[Training, ...]
    differing: tuple[str, ...]
    image: Mapping[str, Spread]
    pixel: Mapping[str, Spread]

    @property
    def caution(self) -> str:
        """Warn where more than seeds differs, or nothing at all; empty otherwise."""
        others = [field for field in self.differing if field.rpartition(".")[2] != "seed"]
        if others:
            return (
                f"the trainings differ in more than their seeds ({', '.join(others)}): the spread "
                "is over these too"
            )
        return (
            "" if self.differing else "the trainings have the same seed: their spread means nothing"
        )


def summarise(trainings: Sequence[Training], configs: Sequence[Mapping[str, Any]]) -> Seeds:
    """Average trainings, given with what each was trained with; pixels only where all have them.

    Raises UserError for fewer than two.
    """
    if len(trainings) < 2:
        raise UserError(f"trainings: got {len(trainings)}; a spread needs two or more")
    pixels = [training.pixel for training in trainings if training.pixel is not None]
    return Seeds(
        tuple(trainings),
        differing_fields(configs),
        spreads([training.image for training in trainings]),
        spreads(pixels) if len(pixels) == len(trainings) else {},
    )


def spreads(rows: Sequence[ImageMetrics] | Sequence[PixelMetrics]) -> dict[str, Spread]:
    """Mean and deviation of every field."""
    return {
        field: mean_and_deviation([getattr(row, field) for row in rows])
        for field in rows[0]._fields
    }


def mean_and_deviation(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of one value or more."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


def differing_fields(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Name the fields, dotted, in which any configuration differs from the first."""
    first, *others = configs
    lines = [line for other in others for line in config_differences(first, other)]
    return tuple(sorted({line.partition(":")[0] for line in lines}))

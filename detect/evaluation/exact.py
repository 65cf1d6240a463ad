"""Exact pixel metrics of any number of images in bounded memory.

The runs of all images are merged from the highest scores down, in stretches of about
STRETCH_PIXELS pixels at most. Each stretch adds its part of every metric and is forgotten, so that
the result equals one sort of all pixels and the memory is that of one stretch. Every pixel is
sorted twice; a piece of every image is read per stretch, so that time grows with the number of
images times that of all pixels. The disk holds 4 bytes per normal pixel and 8 per anomalous one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from detect.evaluation.pixels import (
    STRETCH_PIXELS,
    BinnedPixels,
    Bins,
    Float32Array,
    IntArray,
    PixelRuns,
)
from detect.evaluation.ranking import (
    Float64Array,
    Ranking,
    Totals,
    best_f1,
    mean_precision,
    pro_area,
    rank,
    rank_bins,
    roc_area,
)


class Sums(NamedTuple):
    """Metrics of a ranking, or a stretch's part of them; float64 [...] each."""

    auroc: Float64Array
    average_precision: Float64Array
    f1_max: Float64Array
    aupro: tuple[Float64Array, ...]  # one per limit

    def plus(self, other: "Sums") -> "Sums":
        """Join two stretches: areas add, of the F1 values the larger counts."""
        return Sums(
            self.auroc + other.auroc,
            self.average_precision + other.average_precision,
            np.maximum(self.f1_max, other.f1_max),
            tuple(a + b for a, b in zip(self.aupro, other.aupro, strict=True)),
        )


def sums(ranking: Ranking, fpr_limits: Sequence[float]) -> Sums:
    """Measure a ranking or a stretch of one."""
    return Sums(
        roc_area(ranking),
        mean_precision(ranking),
        best_f1(ranking),
        tuple(pro_area(ranking, limit) for limit in fpr_limits),
    )


Groups = tuple[str, ...]


def exact_sums(
    pixels: PixelRuns,
    binned: BinnedPixels,
    sets: Mapping[str, Groups],
    fpr_limits: Sequence[float],
) -> dict[str, Sums]:
    """Measure sets of images, each given by its groups, all in one reading.

    Sets without an anomalous or without a normal pixel are left out.
    """
    groups = sorted({run.group for run in pixels.runs})
    per_group = {group: binned.total(group) for group in groups}
    totals = {name: set_totals(pixels, chosen) for name, chosen in sets.items()}
    measurable = [name for name, (m, n, _) in totals.items() if m and n]
    found, above = dict.fromkeys(measurable, 0), dict.fromkeys(measurable, 0)
    result: dict[str, Sums] = {}
    for stretch in stretches(pixels, binned, per_group):
        for name in measurable:
            ranking = stretch.rank(sets[name], totals[name], found[name], above[name])
            part = sums(ranking, fpr_limits)
            result[name] = result[name].plus(part) if name in result else part
            found[name] += stretch.num_anomalous(sets[name])
            above[name] += stretch.num_normal(sets[name])
    return result


def set_totals(pixels: PixelRuns, groups: Groups) -> Totals:
    """Count the pixels and regions of some groups."""
    runs = [run for run in pixels.runs if run.group in groups]
    return Totals(
        sum(run.num_anomalous for run in runs),
        sum(run.num_normal for run in runs),
        sum(run.num_regions for run in runs),
    )


# Stretches


class Stretch:
    """All pixels with scores in one interval, per group; normal scores ascending."""

    def __init__(
        self,
        normal: Mapping[str, Float32Array],
        anomalous: Mapping[str, tuple[Float32Array, Float64Array]],
    ) -> None:
        self.normal, self.anomalous = normal, anomalous

    def num_normal(self, groups: Groups) -> int:
        """Count the normal pixels of some groups."""
        return sum(len(self.normal[group]) for group in groups)

    def num_anomalous(self, groups: Groups) -> int:
        """Count the anomalous pixels of some groups."""
        return sum(len(self.anomalous[group][0]) for group in groups)

    def rank(self, groups: Groups, totals: Totals, found: int, above: int) -> Ranking:
        """Rank some groups; `found` and `above` count the pixels of higher stretches."""
        normals = [self.normal[group] for group in groups]
        scores, overlap = chained([self.anomalous[group] for group in groups])
        return rank(normals, scores, overlap, totals, found_before=found, above_before=above)


class TiedStretch:
    """A single score that more pixels have than a stretch may hold: counts are all it takes."""

    def __init__(self, bins: Mapping[str, Bins], index: int) -> None:
        self.counts = {
            group: tuple(float(part[index]) for part in parts) for group, parts in bins.items()
        }

    def num_normal(self, groups: Groups) -> int:
        """Count the normal pixels of some groups."""
        return int(sum(self.counts[group][0] for group in groups))

    def num_anomalous(self, groups: Groups) -> int:
        """Count the anomalous pixels of some groups."""
        return int(sum(self.counts[group][1] for group in groups))

    def rank(self, groups: Groups, totals: Totals, found: int, above: int) -> Ranking:
        """Rank some groups: one step."""
        normal, hits, overlap = np.sum([self.counts[group] for group in groups], axis=0)
        step = rank_bins(*(np.array([value]) for value in (normal, hits, overlap)))
        return step._replace(
            found=step.found + found,
            above=step.above + above,
            reached=step.reached + above,
            totals=totals,
        )


def stretches(
    pixels: PixelRuns, binned: BinnedPixels, per_group: Mapping[str, Bins]
) -> Iterator[Stretch | TiedStretch]:
    """Cut the scores into stretches, the highest first."""
    sizes = sum(bins.normal + bins.hits for bins in per_group.values())
    bounds = stretch_bounds(np.asarray(sizes))
    tied = single_valued(binned.edges)
    upto = np.array([(run.num_normal, run.num_anomalous) for run in pixels.runs])  # [runs, 2]
    for number in reversed(range(len(bounds) - 1)):
        start, stop = bounds[number : number + 2]
        stops, upto = upto, upto - binned.num_within(start, stop)
        if stop - start == 1 and tied[start] and np.asarray(sizes)[start] > STRETCH_PIXELS:
            yield TiedStretch(per_group, start)
        else:
            yield read_stretch(pixels, upto, stops, tuple(per_group))


def stretch_bounds(sizes: Float64Array) -> list[int]:
    """Join neighbouring bins up to STRETCH_PIXELS; a larger bin stays alone."""
    bounds, held = [0], 0.0
    for index, size in enumerate(sizes):
        if held and held + size > STRETCH_PIXELS:
            bounds.append(index)
            held = 0.0
        held += size
    return [*bounds, len(sizes)]


def single_valued(edges: Float32Array) -> np.ndarray:
    """Whether a bin holds one score only: bool [K]."""
    after = np.nextafter(edges, np.float32(np.inf))
    return np.r_[edges[1:] == after[:-1], False]


def read_stretch(pixels: PixelRuns, starts: IntArray, stops: IntArray, groups: Groups) -> Stretch:
    """Read every run from rank to rank, normal and anomalous, and sort the normal pixels.

    starts, stops: int64 [runs, 2].
    """
    normal: dict[str, list[Float32Array]] = {group: [] for group in groups}
    anomalous: dict[str, list[tuple[Float32Array, Float64Array]]] = {g: [] for g in groups}
    for run, start, stop in zip(pixels.runs, starts.tolist(), stops.tolist(), strict=True):
        normal[run.group].append(pixels.normal(run, start[0], stop[0]))
        anomalous[run.group].append(pixels.anomalous(run, start[1], stop[1]))
    return Stretch(
        {group: np.sort(np.concatenate(parts)) for group, parts in normal.items()},
        {group: chained(parts) for group, parts in anomalous.items()},
    )


def chained(
    parts: Sequence[tuple[Float32Array, Float64Array]],
) -> tuple[Float32Array, Float64Array]:
    """Chain anomalous scores and their overlaps."""
    scores, overlap = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(overlap)

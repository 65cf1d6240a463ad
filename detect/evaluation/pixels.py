"""All pixels of the test images on disk, sorted image by image: what pixel metrics stream from.

An image's pixels become one run: its normal scores ascending, its anomalous scores ascending and
the size of each anomalous pixel's region. Exact metrics merge the runs stretch by stretch
(exact.py); curves and confidence intervals need the runs' counts in bins only.

Shapes: H, W pixels of an image; n normal and m anomalous ones; K bins.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from detect.evaluation.ranking import BoolArray, Float64Array, FloatArray, require_finite_scores
from detect.scratch import Scratch
from synth.base.errors import UserError

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

NUM_BINS = 2048  # of scores; on 100 to 1,000 maps they moved no metric by more than 0.0002
NUM_SAMPLES = 256  # of each run's scores, twice, to place the bins
STRETCH_PIXELS = 2**22  # in memory at once


class Span(NamedTuple):
    """Where an image's pixels lie in the scratch file; group: its defect type, or normal."""

    group: str
    place: int
    num_normal: int
    num_anomalous: int
    num_regions: int


class ParkedSample(NamedTuple):
    """Where some of a run's scores, and how many each stands for, lie in the scratch file."""

    values: int
    weights: int
    length: int


class Bins(NamedTuple):
    """Pixels of one image, or of several, per bin of scores, lowest first; float64 [..., K]."""

    normal: Float64Array
    hits: Float64Array
    overlap: Float64Array


class PixelRuns:
    """The pixels of the test images, added image by image in any order."""

    def __init__(self, scratch: Scratch) -> None:
        self.runs: list[Span] = []
        self._scratch = scratch
        self._normal_samples: list[ParkedSample] = []
        self._anomalous_samples: list[ParkedSample] = []

    def add(self, scores: FloatArray, mask: BoolArray | None, group: str) -> None:
        """Add an image: scores float [H, W], used as float32; mask bool [H, W], None for empty.

        Raises UserError for scores that are not finite, another size or type of the mask, and a
        full disk.
        """
        require_finite_scores(scores, "pixel")
        scores = scores.astype(np.float32)
        if mask is None:
            normal, anomalous = np.sort(scores, axis=None), np.empty(0, np.float32)
            sizes, num_regions = np.empty(0, np.int32), 0
        else:
            check_mask(mask, scores, len(self.runs))
            normal, anomalous = np.sort(scores[~mask]), scores[mask]
            sizes, num_regions = region_sizes(mask)
            order = np.argsort(anomalous)
            anomalous, sizes = anomalous[order], sizes[order]
        place = self._scratch.append(normal)
        self._scratch.append(anomalous)
        self._scratch.append(sizes)
        self.runs.append(Span(group, place, len(normal), len(anomalous), num_regions))
        self._normal_samples.append(self._park(normal))
        self._anomalous_samples.append(self._park(anomalous))

    def normal(self, run: Span, start: int, stop: int) -> Float32Array:
        """Read a run's normal scores, ascending, from rank `start` up to `stop`."""
        return self._scratch.read(run.place + 4 * start, stop - start, np.float32)

    def anomalous(self, run: Span, start: int, stop: int) -> tuple[Float32Array, Float64Array]:
        """Read a run's anomalous scores, ascending, and 1 / (pixels of its region) for each."""
        place = run.place + 4 * (run.num_normal + start)
        scores = self._scratch.read(place, stop - start, np.float32)
        sizes = self._scratch.read(place + 4 * run.num_anomalous, stop - start, np.int32)
        return scores, 1.0 / sizes

    def edges(self) -> Float32Array:
        """Lower edges of about NUM_BINS bins, ascending, the first at minus infinity.

        A quarter of the bins parts the normal pixels evenly, a quarter ever finer towards the
        highest scores, half of them the anomalous pixels evenly. A frequent score has a bin of its
        own, so that ties stay ties. Of more than 5 * 10^8 pixels there are more bins: none but
        those of a frequent score holds more than STRETCH_PIXELS.
        """
        num_normal = sum(run.num_normal for run in self.runs)
        num_anomalous = sum(run.num_anomalous for run in self.runs)
        even = np.linspace(0, num_normal, num_bins(NUM_BINS // 4, num_normal))
        fine = np.geomspace(1, max(num_normal, 2), NUM_BINS // 4)
        normal = [self._sample(parked) for parked in self._normal_samples]
        anomalous = [self._sample(parked) for parked in self._anomalous_samples]
        picked = np.r_[
            pick(normal, np.r_[even, fine]),
            pick(anomalous, np.linspace(0, num_anomalous, num_bins(NUM_BINS // 2, num_anomalous))),
        ]
        values, counts = np.unique(picked, return_counts=True)
        infinity = np.float32(np.inf)
        after = np.nextafter(values[counts > 1], infinity)
        return np.unique(np.r_[-infinity, values, after]).astype(np.float32)

    def _park(self, ascending: Float32Array) -> ParkedSample:
        """Write a sample of a run to disk.

        Small arrays that stay would lie between large ones that go, and their holes fit no other:
        memory would grow by a map's size with every image.
        """
        values, weights = sample(ascending)
        places = (self._scratch.append(values), self._scratch.append(weights))
        return ParkedSample(*places, len(values))

    def _sample(self, parked: ParkedSample) -> tuple[Float32Array, IntArray]:
        values = self._scratch.read(parked.values, parked.length, np.float32)
        return values, self._scratch.read(parked.weights, parked.length, np.int64)


class BinnedPixels:
    """The pixels of every run counted in bins, on disk; bin j is [edges[j], edges[j + 1])."""

    def __init__(self, pixels: PixelRuns, scratch: Scratch) -> None:
        """Count; one reading of all pixels."""
        self.runs: Sequence[Span] = pixels.runs
        self.edges = pixels.edges()
        self._scratch = scratch
        self._places = [self._append(pixels, run) for run in self.runs]

    def _append(self, pixels: PixelRuns, run: Span) -> int:
        """Write a run's counts, normal and anomalous: int32 [K, 2]; and overlaps: float64 [K]."""
        normal = self._counts(pixels.normal(run, 0, run.num_normal))
        anomalous, overlap = pixels.anomalous(run, 0, run.num_anomalous)
        hits = self._counts(anomalous)
        place = self._scratch.append(np.stack([normal, hits], axis=1).astype(np.int32))
        before = np.r_[0.0, overlap.cumsum()]
        self._scratch.append(np.diff(before[np.r_[0, hits.cumsum()]]))
        return place

    def _counts(self, ascending: Float32Array) -> IntArray:
        return np.diff(np.searchsorted(ascending, self.edges), append=len(ascending))

    def read(self, indices: Iterable[int]) -> Bins:
        """Read the counts of some runs: float64 [runs, K] each."""
        num, rows = len(self.edges), []
        for place in (self._places[i] for i in indices):
            counts = self._scratch.read(place, 2 * num, np.int32).reshape(num, 2).T
            overlap = self._scratch.read(place + 8 * num, num, np.float64)
            rows.append(np.vstack([counts, overlap]))
        normal, hits, overlap = np.stack(rows, axis=1)
        return Bins(normal, hits, overlap)

    def num_within(self, start: int, stop: int) -> IntArray:
        """Count each run's normal and anomalous pixels in bins start..stop-1: int64 [runs, 2]."""
        counts = (
            self._scratch.read(place + 8 * start, 2 * (stop - start), np.int32)
            for place in self._places
        )
        return np.stack([each.reshape(-1, 2).sum(0, dtype=np.int64) for each in counts])

    def total(self, group: str | None = None) -> Bins:
        """Sum the counts of a group, or of all runs: float64 [K] each."""
        sums = np.zeros((3, len(self.edges)))
        for index, run in enumerate(self.runs):
            if group in (None, run.group):
                sums += np.stack([bins[0] for bins in self.read([index])])
        return Bins(*sums)


def num_bins(least: int, num_pixels: int) -> int:
    """How many bins share so many pixels evenly: `least`, or four per stretch."""
    return max(least, 4 * num_pixels // STRETCH_PIXELS)


def check_mask(mask: BoolArray, scores: FloatArray, number: int) -> None:
    """Raise UserError unless the mask of image `number` is bool and as large as its map."""
    if mask.dtype != np.bool_:
        raise UserError(f"mask {number}: got {mask.dtype}, must be bool; pass mask > 0")
    if mask.shape != scores.shape:
        raise UserError(
            f"map {number}: got shape {scores.shape}, its mask has {mask.shape}; resize one"
        )


def region_sizes(mask: BoolArray) -> tuple[npt.NDArray[np.int32], int]:
    """Pixels of its region per True pixel, in row order, and the number of regions.

    Regions are the 8-connected pieces of a mask bool [H, W].
    """
    if not mask.any():
        return np.empty(0, np.int32), 0
    num, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    inside: npt.NDArray[np.int32] = np.asarray(labels, np.int32)[mask]
    return np.bincount(inside).astype(np.int32)[inside], num - 1


def sample(ascending: Float32Array) -> tuple[Float32Array, IntArray]:
    """Some of a run's scores, highest first, and how many scores each stands for.

    Evenly spaced in rank, and ever denser towards the highest score.
    """
    n = len(ascending)
    if not n:
        return ascending, np.empty(0, np.int64)
    even, fine = np.linspace(0, n - 1, NUM_SAMPLES), np.geomspace(1, n, NUM_SAMPLES) - 1
    ranks = np.unique(np.r_[even, fine].astype(np.int64))  # 0 is the highest score
    return ascending[n - 1 - ranks], np.diff(ranks, append=n)


def pick(samples: Sequence[tuple[Float32Array, IntArray]], ranks: Float64Array) -> Float32Array:
    """Scores of about the given ranks (0 is the highest) among all that the samples stand for."""
    scores = np.concatenate([values for values, _ in samples])
    if not len(scores):
        return scores
    order = np.argsort(scores)[::-1]
    upto = np.concatenate([weights for _, weights in samples])[order].cumsum()
    return scores[order][np.searchsorted(upto, ranks).clip(max=len(scores) - 1)]

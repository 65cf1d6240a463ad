"""The test images while a detector trains: measured now and then, and no part of the training."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detect.evaluation.best import LABEL, Best, Moment, best_of
from detect.evaluation.measure import measure_points
from detect.evaluation.testset import TestSet, listing_digest
from detect.evaluation.text import auroc_words, best_words
from detect.images import CACHE_BYTES, ImagePool
from detect.scoring import Scorer, image_batches
from synth.base.errors import UserError
from synth.base.files import read_json, write_json
from synth.base.progress import Bars
from synth.data.catalog import Category

WATCH_FILE = "watch_test.json"


class WatchedTests:
    """The test sets of a training, their images in memory, and what was measured on them so far.

    Raises UserError for a damaged file, and for one that is of other test images.
    """

    def __init__(
        self, folder: Path, tests: Sequence[TestSet], size: tuple[int, int], bars: Bars
    ) -> None:
        self.folder, self.tests, self.size, self.bars = folder, tests, size, bars
        self.rows = read_moments(folder, self.facts)
        self._pools: list[ImagePool] = []

    @property
    def facts(self) -> list[dict[str, Any]]:
        """Which images are measured on."""
        return [images_facts(test.category) for test in self.tests]

    def lacks(self, step: int) -> bool:
        """Whether nothing was measured after so many steps."""
        return step not in [row.step for row in self.rows]

    def measure(self, scorer: Scorer, step: int) -> Moment:
        """Score all test images, pixels at the masks' own resolution."""
        if not self._pools:
            share = CACHE_BYTES // len(self.tests)
            self._pools = [
                ImagePool(test.paths, self.size, self.bars, share, "loading test images")
                for test in self.tests
            ]
        found = [
            measure_points(test, image_batches(scorer, pool.image, len(pool.paths)), self.folder)
            for test, pool in zip(self.tests, self._pools, strict=True)
        ]
        return Moment(
            step,
            tuple(image.auroc for image, _ in found),
            tuple(None if pixel is None else pixel.auroc for _, pixel in found),
        )

    def forget(self) -> None:
        """Drop all rows because the training starts again."""
        self.rows.clear()
        (self.folder / WATCH_FILE).unlink(missing_ok=True)

    def add(self, row: Moment, *, write: bool = True) -> None:
        """Keep a row."""
        self.rows.append(row)
        if write:
            rows = [row._asdict() for row in self.rows]
            write_json(self.folder / WATCH_FILE, {"tests": self.facts, "rows": rows})

    def sentence(self, kept: int, last: int) -> str:
        """Say what was best, beside the detector's own figures, which are of step `kept`."""
        if not self.rows:
            return f"{LABEL}: not measured, the training was finished before"
        own = [auroc_words(row.image, row.pixel) for row in self.rows if row.step == kept]
        name = "the last step" if kept == last else "the detector, of step"
        means = f", means over {len(self.tests)} categories" if len(self.tests) > 1 else ""
        return (
            f"{LABEL}: {best_words(best_of(self.rows))}; {name} {kept}: "
            f"{own[0] if own else 'not measured'}{means}"
        )


def images_facts(category: Category) -> dict[str, Any]:
    """Which test images a category has, by name and size."""
    return {
        "category": category.name,
        "num_images": len(category.test),
        "files": listing_digest(category.test),
    }


# The file


def best_on_test(folder: Path, category: Category) -> Best | None:
    """The best that the detector in `folder` reached on these very test images while it trained.

    None where they were not watched. Raises UserError for a damaged file.
    """
    tests, rows = read_watch(folder)
    facts = images_facts(category)
    if not rows or facts not in tests:
        return None
    return best_of([row.of(tests.index(facts)) for row in rows])


def read_moments(folder: Path, facts: Sequence[Mapping[str, Any]]) -> list[Moment]:
    """What was measured so far on the test images of `facts`. Raises UserError for other ones."""
    tests, rows = read_watch(folder)
    if rows and tests != list(facts):
        raise UserError(
            f"{folder / WATCH_FILE}: of other test images; give the ones it was begun with, leave "
            "--watch-test out, or delete this file"
        )
    return rows


def read_watch(folder: Path) -> tuple[list[Any], list[Moment]]:
    """The test images' facts and the rows in WATCH_FILE; nothing where there is none.

    Raises UserError when it is damaged.
    """
    path, cure = folder / WATCH_FILE, "delete this file, no training depends on it"
    if not path.exists():
        return [], []
    match read_json(path, cure):
        case {"tests": [*tests], "rows": [*written]}:
            rows = [row for each in written if (row := read_row(each, len(tests))) is not None]
        case _:
            raise UserError(f"{path}: damaged (no list of rows); {cure}")
    ascending = all(a.step < b.step for a, b in itertools.pairwise(rows))
    if len(rows) < len(written) or not ascending:
        raise UserError(f"{path}: damaged (these are no rows of a training); {cure}")
    return tests, rows


def read_row(row: object, num_tests: int) -> Moment | None:
    """A row of WATCH_FILE; None for anything else."""
    match row:
        case {"step": int(step), "image_auroc": [*images], "pixel_auroc": [*pixels]}:
            sizes = {len(images), len(pixels)}
            values = [*images, *(value for value in pixels if value is not None)]
        case _:
            return None
    if sizes != {num_tests} or not all(isinstance(value, float) for value in values):
        return None
    return Moment(step, tuple(images), tuple(pixels))

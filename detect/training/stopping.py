"""Early stopping: keep the best of several moments of a training, without any real defect.

The judges are normal images that serve nothing else, each as it is and once with an anomaly
blended in. They are neither test images nor the images that set the threshold: a choice made on
those would break the threshold's promise.
"""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detect.data.samples import BlendedDataset, JoinedDataset
from detect.evaluation.metrics import image_metrics, pixel_metrics
from detect.scoring import Scorer, image_batches, joined
from synth.base.errors import UserError
from synth.base.files import read_json, write_json
from synth.data.catalog import Record, held_out
from synth.data.normals import Normals
from synth.pictures import Images, digest

NUM_CHECKS = 20
"""Checks in a whole training, evenly spread over its steps."""
JUDGES_SEED = 1  # 0 chooses the held-out images
CHECKS_FILE, BEST_FILE = "checks.json", "best.safetensors"


class SyntheticTest(NamedTuple):
    """Images uint8 [2N, H, W, 3], normal ones first, then the same blended; masks bool [2N, H, W].

    An image counts as anomalous even if the P blended in does not differ from I.
    """

    images: Images
    masks: NDArray[np.bool_]

    @property
    def labels(self) -> NDArray[np.bool_]:
        """True for the blended half: bool [2N]."""
        return np.arange(len(self.images)) >= len(self.images) // 2


def blended_once(dataset: BlendedDataset | JoinedDataset) -> SyntheticTest:
    """Take the first epoch of a dataset all of whose samples are blended."""
    samples = [dataset[number] for number in range(dataset.num_images)]
    pair = [
        np.stack([image.numpy().transpose(1, 2, 0) for image in images])
        for images in ([s.normal for s in samples], [s.image for s in samples])
    ]
    masks = np.stack([sample.mask.numpy() for sample in samples])
    return SyntheticTest(np.concatenate(pair), np.concatenate([np.zeros_like(masks), masks]))


def without_judges(normals: Normals) -> tuple[Normals, Images]:
    """Set a tenth of the training images apart, copies together: the rest, and the judges.

    Raises UserError if nothing would be left to train on.
    """
    records = normals.fit_records
    pictures = [digest(image) for image in normals.fit]
    firsts: dict[str, Record] = {}
    for picture, record in zip(pictures, records, strict=True):
        firsts.setdefault(picture, record)
    if len(firsts) < 2:
        raise UserError(
            f"--patience: {normals.category.name} has one picture to train on and none to judge "
            "by; add normal images or leave --patience out"
        )
    different = replace(normals.category, records=tuple(firsts.values()))
    _, apart = held_out(different, seed=JUDGES_SEED)
    chosen = {picture for picture, record in firsts.items() if record in apart}
    rest = [n for n, picture in enumerate(pictures) if picture not in chosen]
    judges = [n for n, picture in enumerate(pictures) if picture in chosen]
    kept = normals._replace(fit_records=[records[n] for n in rest], fit=normals.fit[rest])
    return kept, normals.fit[judges]


class Check(NamedTuple):
    """A detector's figures on a synthetic test after a number of steps."""

    step: int
    image_auroc: float
    pixel_average_precision: float

    @property
    def value(self) -> float:
        """The figure to choose by: the mean of both."""
        return (self.image_auroc + self.pixel_average_precision) / 2


def make_check(scorer: Scorer, test: SyntheticTest, step: int, batch_size: int = 16) -> Check:
    """Score a synthetic test."""
    num_images, image_of = len(test.images), test.images.__getitem__
    found = joined(image_batches(scorer, image_of, num_images, batch_size=batch_size))
    image = image_metrics(test.labels, found.scores)
    pixel = pixel_metrics(list(test.masks), list(found.maps))
    return Check(step, image.auroc, pixel.average_precision)


def moments(num_steps: int) -> list[int]:
    """The steps after which a training is looked at, including the last one."""
    interval = max(1, num_steps // NUM_CHECKS)
    return sorted({*range(interval, num_steps, interval), num_steps})


class Checks:
    """The checks of one training, kept in a file, and which of them was best.

    patience: checks in a row without gain after which the training ends. Raises UserError as
    `read_checks`.
    """

    def __init__(self, folder: Path, test: SyntheticTest, patience: int) -> None:
        self.folder, self.test, self.patience = folder, test, patience
        self.rows = read_checks(folder)

    def goals(self, num_steps: int) -> list[int]:
        """The steps that are left to train to and check at, including the last one."""
        last = self.rows[-1].step if self.rows else 0
        return [] if self.finished else [step for step in moments(num_steps) if step > last]

    @property
    def best(self) -> Check:
        """The first of the best checks; there must be one."""
        return max(self.rows, key=lambda row: row.value)

    @property
    def finished(self) -> bool:
        """Whether the last `patience` checks brought no gain."""
        return bool(self.rows) and len(self.rows) - self.rows.index(self.best) > self.patience

    def forget(self) -> None:
        """Drop all checks because the training starts again."""
        self.rows.clear()
        (self.folder / CHECKS_FILE).unlink(missing_ok=True)

    def add(self, row: Check, *, write: bool = True) -> None:
        """Keep a check; if it is the best, its weights must already be in BEST_FILE."""
        self.rows.append(row)
        if write:
            write_json(self.folder / CHECKS_FILE, {"checks": [row._asdict() for row in self.rows]})


def read_checks(folder: Path) -> list[Check]:
    """The checks that the training in `folder` has made so far.

    Raises UserError for a damaged file, and if the weights of the best check are missing.
    """
    path, cure = folder / CHECKS_FILE, f"delete {folder} and train again"
    if not path.exists():
        return []
    match read_json(path, cure):
        case {"checks": [*rows]} if all(map(is_check, rows)):
            checks = [Check(**row) for row in rows]
        case _:
            raise UserError(f"{path}: damaged (no list of checks); {cure}")
    if any(a.step >= b.step for a, b in itertools.pairwise(checks)):
        raise UserError(f"{path}: damaged (steps must ascend); {cure}")
    if checks and not (folder / BEST_FILE).exists():
        raise UserError(f"{folder / BEST_FILE}: missing, the weights of the best check; {cure}")
    return checks


def is_check(row: object) -> bool:
    """Whether a row of CHECKS_FILE is a `Check`."""
    match row:
        case {
            "step": int(),
            "image_auroc": float(),
            "pixel_average_precision": float(),
            **others,
        }:
            return not others
        case _:
            return False

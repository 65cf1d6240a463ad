"""Candidates for the images of a folder: drawn in batches, and again while they are refused."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from synth.base.errors import UserError
from synth.base.files import file_digest
from synth.base.memory import half, unless_out_of_memory
from synth.diffusion.model import DiffusionModel
from synth.pictures import Images
from synth.quality.reference import load_reference, quality_scores, reference_path

MAX_ATTEMPTS = 50
"""Where 20 % of the candidates are accepted, one image in 70,000 needs more."""
NUM_REMEMBERED = 1000
"""Scores that the error quotes from."""


class Candidate(NamedTuple):
    """Image `number`, of which `attempt` candidates were refused before."""

    number: int
    attempt: int = 0


class QualityRange(NamedTuple):
    """Accepts images whose distance from normal lies between `low` and `high`; 1 is normal.

    score: uint8 [N, H, W, 3] to float32 [N], each image alone. reference: what it measures by.
    """

    low: float
    high: float
    score: Callable[[Images], NDArray[np.float32]]
    reference: str

    def to_json(self) -> dict[str, float | str | None]:
        """As recorded in sia.json."""
        high = None if self.high == float("inf") else self.high
        return {"low": self.low, "high": high, "reference": self.reference}


def open_quality_range(
    model_folder: Path, model: DiffusionModel, category: str, low: float | None, high: float | None
) -> QualityRange | None:
    """The range [low, high] of quality, open where one is None; None where both are.

    Raises UserError as `load_reference`.
    """
    if low is None and high is None:
        return None
    label = category if model.conditional else None
    reference = load_reference(model_folder, label)
    return QualityRange(
        low=0.0 if low is None else low,
        high=float("inf") if high is None else high,
        score=lambda images: quality_scores(reference, images),
        reference=file_digest(reference_path(model_folder, label))[:16],
    )


class Accepted(NamedTuple):
    """An accepted candidate, its image uint8 [H, W, 3], and its quality where it was measured."""

    candidate: Candidate
    image: NDArray[np.uint8]
    quality: float | None


def draw_accepted(
    indices: Iterator[int],
    batch_size: int,
    draw: Callable[[Sequence[Candidate]], Images],
    quality: QualityRange | None,
) -> Iterator[Accepted]:
    """Draw an image of every index, in batches; what `quality` refuses is drawn again at once.

    Where the memory does not suffice the batch is halved and drawn again. Raises UserError when not
    even one image fits, and when MAX_ATTEMPTS candidates of one image were refused.
    """
    waiting: deque[Candidate] = deque()
    seen = Seen()
    while True:
        while len(waiting) < batch_size and (index := next(indices, None)) is not None:
            waiting.append(Candidate(index))
        batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
        if not batch:
            return
        images = unless_out_of_memory(draw, batch)
        if images is None:
            batch_size = half(len(batch))
            waiting.extendleft(reversed(batch))
            continue
        if quality is None:
            yield from (Accepted(c, image, None) for c, image in zip(batch, images, strict=True))
            continue
        for candidate, image, score in zip(batch, images, quality.score(images), strict=True):
            if seen.accepts(quality, float(score)):
                yield Accepted(candidate, image, round(float(score), 4))
            elif candidate.attempt + 1 < MAX_ATTEMPTS:
                waiting.appendleft(candidate._replace(attempt=candidate.attempt + 1))
            else:
                raise UserError(seen.complaint(quality, candidate))


class Seen:
    """How candidates fared so far."""

    def __init__(self) -> None:
        self.num_seen = self.num_accepted = 0
        self.scores: deque[float] = deque(maxlen=NUM_REMEMBERED)

    def accepts(self, quality: QualityRange, score: float) -> bool:
        """Whether the score lies in the range; it is remembered."""
        accepted = quality.low <= score <= quality.high
        self.num_seen += 1
        self.num_accepted += accepted
        self.scores.append(score)
        return accepted

    def complaint(self, quality: QualityRange, candidate: Candidate) -> str:
        """Why there is no end to it, in one line."""
        low, high = np.quantile(self.scores, (0.1, 0.9))
        return (
            f"quality: image {candidate.number} was refused {MAX_ATTEMPTS} times; of "
            f"{self.num_seen} candidates {self.num_accepted / self.num_seen:.1%} lay within "
            f"{quality.low:g} to {quality.high:g}, most of them lie within {low:.2f} to "
            f"{high:.2f}; widen --min-quality and --max-quality, or train the model longer"
        )

"""Export a trained detector, and check the file against torch before it takes its place."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.export import ExportedProgram

from detect.checkpoint import TrainedDetector
from detect.exporting.formats import (
    FORMATS,
    Format,
    Runner,
    median_milliseconds,
    quiet,
    write_onnx,
)
from detect.exporting.graph import ABOUT_INPUT, ABOUT_OUTPUTS, record
from detect.exporting.quantised import Judged, calibrating, judge, quantise
from detect.images import to_batch
from detect.packing import packed
from synth.base.errors import UserError
from synth.base.files import PARTIAL_SUFFIX, write_fault
from synth.base.memory import is_out_of_memory
from synth.data.normals import Normals
from synth.images import read_image, resize
from synth.pictures import Images

RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-3, 1e-4
"""Scores and maps may differ from torch's by this share of the largest, or by this much."""
MOST_EXCEPTIONS = 0.05
"""Share of images that may differ by more, or get another verdict.

Where two residual channels stand out alike, rounding decides which of them RRS passes on first: the
official network differs from itself by as much when its input changes by 1e-6.
"""
NUM_CHECKED = 16
BATCH = 3  # not the batch that the graph is timed with


class Difference(NamedTuple):
    """The largest absolute difference of two runtimes, and torch's largest values."""

    score: float
    map: float
    largest_score: float
    largest_map: float

    @property
    def is_allowed(self) -> bool:
        """Whether both are within the tolerance; never where they are not numbers."""
        pairs = (self.score, self.largest_score), (self.map, self.largest_map)
        return all(
            difference <= max(ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE * size)
            for difference, size in pairs
        )

    def __str__(self) -> str:
        return f"{self.score:.1g} in the score, {self.map:.1g} in the map"


class Exported(NamedTuple):
    """What an export came to.

    parity: against torch, images at the detector's own size. resizing: the same for images of
    other sizes, which torch gets resized by OpenCV. beyond, moved: images beyond the tolerance, and
    with another verdict, which are exceptions. Milliseconds are per image, one at a time. All these
    are of float32; int8: what became of them where the file computes in 8-bit integers.
    """

    path: Path
    size_bytes: int
    num_checked: int
    parity: Difference
    resizing: Difference
    beyond: int
    moved: int
    milliseconds: float
    torch_milliseconds: float
    int8: Judged | None = None


def export_detector(
    trained: TrainedDetector,
    out: Path,
    format_name: str,
    images: Sequence[Path] = (),
    products: Sequence[Normals] = (),
) -> Exported:
    """Write `out` (a file, or a folder for a file named detector) and check it against torch.

    trained: on the CPU. images: files to check with; without any, made ones. products: what it was
    trained on, to have its backbone in 8-bit integers. An existing file is replaced by a checked
    one only. Raises UserError where the format's packages are missing or refuse the network, the
    parity is beyond the tolerance, 8 bits move too many verdicts, or nothing can be written.
    """
    form = FORMATS[format_name]
    form.require()
    path = file_path(out, form)
    samples = [read_image(file) for file in images] or made_images(trained.image_size)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX
        ) as staging:
            staged = Path(staging) / path.name
            with quiet():
                with refusals_of(format_name, trained):
                    program = record(trained.detector, trained.image_size)
                    form.write(program, staged, about(trained))
                    run = form.read(staged)
                exported = check(run, trained, samples)
                require_parity(path, exported)
                if products:
                    with refusals_of(format_name, trained):
                        judged = put_in_integers(form, program, staged, run, trained, products)
                    require_few_moved(path, judged)
                    exported = exported._replace(int8=judged)
            size = size_of(form, staged)
            take_place(form, staged, path)
    except OSError as error:
        raise UserError(write_fault(path, error)) from error
    return exported._replace(path=path, size_bytes=size)


def put_in_integers(
    form: Format,
    program: ExportedProgram,
    staged: Path,
    run: Runner,
    trained: TrainedDetector,
    products: Sequence[Normals],
) -> Judged:
    """Replace the float32 file `staged`, which `run` runs, by one whose backbone has 8 bits."""
    assert form.convert is not None, "see the command"
    with tempfile.TemporaryDirectory(dir=staged.parent) as folder:
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        model = Path(folder) / staged.name
        write_onnx(program, whole, about(trained))
        num_quantised = quantise(whole, small, calibrating(products), trained.detector)
        form.convert(small, model, about(trained))
        anew, judged = judge(run, form.read(model), trained, products)
        told = {"int8": f"{num_quantised} convolutions of the backbone"}
        form.convert(small, model, {**about(anew), **told})
        float_bytes = size_of(form, staged)
        take_place(form, model, staged)
    return judged._replace(num_quantised=num_quantised, float_bytes=float_bytes)


def require_few_moved(path: Path, judged: Judged) -> None:
    """Raise UserError where 8-bit integers move more verdicts than may be exceptions."""
    if judged.moved > MOST_EXCEPTIONS * judged.num_images:
        raise UserError(
            f"{path}: not written, 8-bit integers move {judged.moved} of {judged.num_images} "
            f"verdicts on held-out normal images and the same with CutPaste blended in, allowed is "
            f"{MOST_EXCEPTIONS:.0%} (scores by {judged.largest:.1g} at most): leave --int8 out"
        )


def size_of(form: Format, path: Path) -> int:
    """Bytes of a model, what lies beside it included."""
    files = (path, *form.companions(path))
    return sum(file.stat().st_size for file in files if file.exists())


@contextmanager
def refusals_of(format_name: str, trained: TrainedDetector) -> Iterator[None]:
    """Raise UserError where an exporter or a runtime cannot do with the network."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:  # they raise anything
        if is_out_of_memory(error):
            raise
        backbone = trained.config["detector"]["backbone"]["name"]
        others = " or ".join(name for name in FORMATS if name != format_name)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"--format {format_name}: a detector with {backbone} "
            f"cannot be written in it ({reason}); try --format {others}"
        ) from error


def file_path(out: Path, form: Format) -> Path:
    """Where the model goes. Raises UserError for a suffix that is not the format's."""
    if out.is_dir() or not out.suffix:
        return out / f"detector{form.suffix}"
    if out.suffix != form.suffix:
        raise UserError(
            f"--out: got {out}, a model of this format ends in {form.suffix}; "
            "give such a file or a folder"
        )
    return out


def about(trained: TrainedDetector) -> dict[str, Any]:
    """The description that travels inside the file: all that a verdict and a p-value need."""
    own = {name: each.to_json() for name, each in trained.by_category.items()}
    return {
        "siaforge": version("siaforge"),
        "method": trained.config["method"],
        "dataset": trained.config["dataset"],
        "category": trained.config["category"],
        "image_size": list(trained.image_size),
        **trained.calibration.to_json(),
        **({"categories": own} if own else {}),
        "verdict": "anomalous where the score is above the threshold",
        "p_value": "(1 + number of scores >= score) / (number of scores + 1)",
        "input": ABOUT_INPUT,
        "outputs": ABOUT_OUTPUTS.format(*trained.image_size),
    }


def made_images(size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Seeded images, half noise and half smooth: of `size`, and every second of another one.

    The others are larger, smaller, or larger along one axis and smaller along the other.
    """
    images = []
    factors = [(5 / 3, 1.51), (0.6, 0.47), (0.3, 1.7), (2.3, 0.8)]
    for number in range(NUM_CHECKED):
        rng = np.random.default_rng(number)
        height, width = size
        if number % 4 > 1:
            y, x = factors[number // 4]
            height, width = round(height * y) + 1, round(width * x) + 1
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if number % 2:
            coarse = image[: height // 8 + 1, : width // 8 + 1]
            image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        images.append(np.asarray(image, np.uint8))
    return images


# --- the check -----------------------------------------------------------------------------------


def check(run: Runner, trained: TrainedDetector, samples: Sequence[NDArray[np.uint8]]) -> Exported:
    """Compare a written model with torch on the samples; time both on the first."""
    native = np.stack([resize(image, trained.image_size) for image in samples])
    detector = packed(trained.detector)

    def reference(images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        scores = detector.predict(to_batch(images, torch.device("cpu")))
        return scores.image.numpy(), scores.maps.numpy()

    rejects = trained.calibration.rejects
    rows: list[list[Difference]] = []  # of every image: at the detector's size, then at its own
    moved = 0
    for start in range(0, len(native), BATCH):
        want = reference(native[start : start + BATCH])
        got = run(native[start : start + BATCH])
        for n, image in enumerate(samples[start : start + BATCH]):
            answers = [(got[0][n], got[1][n])]
            if image.shape[:2] != trained.image_size:
                scores, maps = run(image[None])
                answers.append((scores[0], maps[0]))
            rows.append([difference(answer, (want[0][n], want[1][n])) for answer in answers])
            moved += any(
                rejects(float(score)) != rejects(float(want[0][n])) for score, _ in answers
            )
    sizes = largest([each for row in rows for each in row])[2:]  # of all images together
    return Exported(
        path=Path(),
        size_bytes=0,
        num_checked=len(native),
        parity=largest([row[0] for row in rows]),
        resizing=largest([each for row in rows for each in row[1:]]),
        beyond=sum(
            not all(Difference(*each[:2], *sizes).is_allowed for each in row) for row in rows
        ),
        moved=moved,
        milliseconds=median_milliseconds(lambda: run(native[:1])),
        torch_milliseconds=median_milliseconds(lambda: reference(native[:1])),
    )


def difference(got: tuple[ArrayLike, ArrayLike], want: tuple[ArrayLike, ArrayLike]) -> Difference:
    """The largest absolute differences; not a number where either side has such."""
    differences = (float(np.abs(np.subtract(a, b)).max()) for a, b in zip(got, want, strict=True))
    return Difference(*differences, *(float(np.abs(b).max()) for b in want))


def largest(differences: Sequence[Difference]) -> Difference:
    """The largest in each part; 0 of none, and not a number where one is not."""
    table = np.array([(0.0,) * 4, *differences])
    return Difference(*table.max(axis=0).tolist())  # a NaN wins


def require_parity(path: Path, made: Exported) -> None:
    """Raise UserError where there are more than exceptions, or what is not a number."""
    worst = largest([made.parity, made.resizing])
    exceptions = max(made.beyond, made.moved)
    if exceptions > MOST_EXCEPTIONS * made.num_checked or not np.isfinite(worst).all():
        raise UserError(
            f"{path}: not written, the exported model differs from torch by {worst}; allowed is "
            f"{RELATIVE_TOLERANCE:g} of the largest ({made.beyond} of {made.num_checked} images "
            f"differ by more, {made.moved} get another verdict): try another --format, or other "
            "versions of its packages"
        )


def take_place(form: Format, staged: Path, path: Path) -> None:
    """Move a model to its place: a single file at once, of several the main one last.

    Of several, the old main file goes first: one without its own weights would score wrongly.
    """
    parts = [
        (new, old)
        for new, old in zip(form.companions(staged), form.companions(path), strict=True)
        if new.exists() or old.exists()
    ]
    if parts:
        path.unlink(missing_ok=True)
    for new, old in parts:
        if new.exists():
            os.replace(new, old)
        else:
            old.unlink()
    os.replace(staged, path)

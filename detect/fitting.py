"""The chain from photographs to a detector: a look at the images, stages, a page that links all.

Every stage is a command of its own, run as it is printed, so that one can go on by hand.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detect.calibration import Calibration, calibrate
from detect.checkpoint import CALIBRATION_FILE
from detect.method import Method
from detect.options import TrainOptions
from synth.base.files import read_json, write_json, write_text
from synth.base.html import bullets, document, embedded_image, section
from synth.base.progress import Bars
from synth.data.catalog import Category, held_out
from synth.images import read_image
from synth.pictures import all_grey

FEW_IMAGES = 50
"""Below so many normal images a diffusion model copies."""
DONE_FILE, PAGE_FILE = "fit.json", "index.html"
MODEL, SIA, DETECTOR, INSPECT, RESULTS = "model", "sia", "detector", "inspect", "results"
NUM_STEPS, NUM_DRAWN = 20, 300
"""Of the chain; images that check, anomaly images and sheets need together."""
BATCH, PASSES_A_STEP = 16, 5
"""A detector's training step takes about so many passes through its backbone."""
FALLBACK = ("--source", "cutpaste")
"""Anomalies without a diffusion model; on magnetic tiles no source ranks images better."""


# The images


class Looked(NamedTuple):
    """What the images are, in lines, and what to beware of."""

    lines: list[str]
    cautions: list[str]


def look(category: Category, bars: Bars) -> Looked:
    """Open every image once. Raises UserError as `read_image` for the first unreadable one."""
    train, test = category.train, category.test
    sizes: list[tuple[int, int]] = []
    grey = True
    with bars("looking at the images", "image") as update:
        for number, record in enumerate((*train, *test), start=1):
            image = read_image(record.path)
            sizes.append(image.shape[:2])
            grey = grey and (record.split == "test" or all_grey(image[None]))
            update(number, len(train) + len(test))
    good = sum(not record.is_anomalous for record in test)
    lines = [
        f"{len(train)} normal images to train on; {good} normal and {len(test) - good} defective "
        "ones to test with",
        f"sizes: {spread_of(sizes)}; {'grey' if grey else 'in colour'}",
    ]
    cautions = [*few(category)]
    ratios = [width / height for height, width in sizes]
    if max(ratios) > 1.5 * min(ratios):
        cautions.append(
            "the images differ in shape, and all are squeezed to one; crop them to the product "
            "first if that distorts it"
        )
    return Looked(lines, cautions)


def few(category: Category) -> Iterator[str]:
    """What the number of normal images is too small for."""
    train, held = category.train, held_out(category)[1]
    rate = TrainOptions().false_reject_rate
    needed = calibrate([0.0], rate).needed
    if len(train) < FEW_IMAGES:
        yield (
            f"{len(train)} normal images are few: below {FEW_IMAGES} a diffusion model tends to "
            "copy them"
        )
    if len(held) < needed:  # a tenth is held out, and never fewer than two
        yield (
            f"the threshold comes from {len(held)} held-out images and cannot promise a rate "
            f"below {1 / (len(held) + 1):.2g}; for {rate:g} give about "
            f"{10 * needed} images here, or {needed} others to "
            "`detect predict --normals`"
        )


def spread_of(sizes: Sequence[tuple[int, int]]) -> str:
    """Sizes (height, width) in words."""
    low, high = np.min(sizes, axis=0).tolist(), np.max(sizes, axis=0).tolist()
    first, last = (f"{height} x {width} px (height x width)" for height, width in (low, high))
    return first if low == high else f"{first.partition(' px')[0]} to {last}"


# The stages


class Stage(NamedTuple):
    """A command and what it is for."""

    title: str
    command: tuple[str, ...]

    @property
    def line(self) -> str:
        """The command as one types it."""
        return shlex.join(self.command)


class Chain(NamedTuple):
    """What is asked for; `data` and `extra` are options of the stages' commands.

    diffusion: options of `synth train`; None leaves out diffusion model and anomaly images. train:
    those of `detect train`; needs_anomalies: whether its method is trained on anomalies. measured:
    whether there are test images of both kinds.
    """

    out: Path
    data: tuple[str, ...]
    diffusion: tuple[str, ...] | None
    train: tuple[str, ...]
    needs_anomalies: bool
    measured: bool

    def stages(self) -> list[Stage]:
        """All stages, as long as the model fits."""
        return [*self.of_images(), *self.of_detector(self.sia_source())]

    def of_images(self) -> list[Stage]:
        """Diffusion model and anomaly images."""
        if self.diffusion is None:
            return []
        model, sia = str(self.out / MODEL), str(self.out / SIA)
        looked_at = ("--model", model, "--num", "12", "--out", str(self.out / INSPECT))
        return [
            Stage(
                "train a diffusion model",
                ("synth", "train", *self.data, *self.diffusion, "--out", model),
            ),
            Stage("draw anomaly images", ("synth", "generate", "--model", model, "--out", sia)),
            Stage("look at them", ("synth", "inspect", *self.data, *looked_at)),
        ]

    def of_detector(self, source: tuple[str, ...]) -> list[Stage]:
        """Detector and evaluation."""
        detector = str(self.out / DETECTOR)
        train = ("detect", "train", *self.data, *self.train, *source, "--out", detector)
        stages = [Stage("train the detector", train)]
        if self.measured:
            results = str(self.out / RESULTS)
            words = ("detect", "evaluate", *self.data, "--model", detector, "--out", results)
            stages.append(Stage("measure it on the test images", words))
        return stages

    @property
    def next_line(self) -> str:
        """What to type next, for a folder of photographs."""
        detector, verdicts = self.out / DETECTOR, self.out / "verdicts"
        return f"detect predict NEW_PHOTOS --model {detector} --out {verdicts}"

    def sia_source(self) -> tuple[str, ...]:
        """Which anomalies the detector is trained on, while nothing speaks against SDAS's."""
        if not self.needs_anomalies:
            return ()
        return FALLBACK if self.diffusion is None else ("--sia", str(self.out / SIA))


def run_chain(chain: Chain, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Run all stages that are not done; a model that is under-fit is said and not used.

    Ends the process with a stage's exit code where one fails.
    """
    for stage in chain.of_images():
        run_stage(stage, chain.out, say)
        if stage.command[1] == "train" and is_under_fit(chain.out):
            warn(
                "the diffusion model is under-fit, so its images are not used: the detector is "
                f"trained on shifted copies of your images ({' '.join(FALLBACK)}); for SDAS images "
                "give more --minutes and run the same command again"
            )
            chain = chain._replace(diffusion=None)
            break
    for stage in chain.of_detector(chain.sia_source()):
        run_stage(stage, chain.out, say)


def is_under_fit(out: Path) -> bool:
    """What the model's own check says."""
    return read_json(out / MODEL / "check.json").get("verdict") == "under-fit"


def run_stage(stage: Stage, out: Path, say: Callable[[str], None]) -> None:
    """Run a command, unless the same one has ended well before."""
    done = read_json(out / DONE_FILE).get("done", []) if (out / DONE_FILE).exists() else []
    if stage.line in done:
        say(f"\n{stage.title}: done before ({stage.line})")
        return
    say(f"\n{stage.title}:\n  {stage.line}")
    package, *words = stage.command
    began = time.monotonic()
    # Ctrl-C reaches the stage too, which says what to do; with a handler of ours we outlive it.
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        ended = subprocess.run([sys.executable, "-m", package, *words], check=False)
    finally:
        signal.signal(signal.SIGINT, handler)
    if ended.returncode:
        sys.exit(ended.returncode)
    # What a later stage read may have changed: it is done again.
    write_json(out / DONE_FILE, {"done": [*before(done, stage), stage.line]})
    say(f"  took {time.monotonic() - began:.0f} s")


def before(done: Sequence[str], stage: Stage) -> list[str]:
    """The commands done before a stage that is done anew: those after it rest on what it was."""
    start = " ".join(stage.command[:2])
    same = [number for number, line in enumerate(done) if line.startswith(start)]
    return list(done[: same[0]] if same else done)


# How long it takes


def estimate(
    category: Category, chain: Chain, method: Method, options: TrainOptions, bars: Bars
) -> str:
    """How long the chain takes, from a few steps of each network; a sentence.

    An image is drawn by NUM_STEPS passes, a third of a training step each. Raises UserError for
    unreadable images.
    """
    model = 0.0
    if chain.diffusion is not None:
        model = diffusion_seconds(category, chain.diffusion, bars)
    detector = detector_seconds(category, method, options)
    if not model:
        return f"about {minutes(detector)} in all"
    parts = f"{minutes(model)} for the diffusion model and its images, the rest for the detector"
    return f"about {minutes(model + detector)} in all: {parts}"


def minutes(seconds: float) -> str:
    """A time in words."""
    return f"{max(1, round(seconds / 60))} min"


def diffusion_seconds(category: Category, given: Sequence[str], bars: Bars) -> float:
    """Training, check, images and sheets of a diffusion model with these options."""
    from synth.base.device import make_accelerator
    from synth.data.normals import load_normals
    from synth.diffusion.config import PRESETS
    from synth.diffusion.training import Learner
    from synth.making.train import fitted

    options = dict(zip(given[::2], given[1::2], strict=True))
    accelerator = make_accelerator("auto")
    normals = load_normals(category, PRESETS[options["--preset"]].unet.image_size, bars)
    config = fitted(PRESETS[options["--preset"]], [normals], accelerator)
    step = Learner(accelerator, config, [normals.fit]).seconds_per_step()
    accelerator.free_memory()
    asked = options.get("--minutes")
    training = config.num_steps * step if asked is None else 60 * float(asked)
    return training + NUM_DRAWN * NUM_STEPS * step / (3 * config.batch_size)


def detector_seconds(category: Category, method: Method, options: TrainOptions) -> float:
    """Training of a detector, by the time that its backbone takes for a batch."""
    import torch

    from detect.config import TrainedConfig
    from synth.base.backbones import build_backbone

    config = method.recipe().configure(options)
    backbone = build_backbone(config.backbone)
    batch = torch.zeros(BATCH, 3, *config.image_size)
    with torch.no_grad():
        backbone(batch)
        began = time.perf_counter()
        backbone(batch)
    seconds = time.perf_counter() - began
    passes = 2 * len(category.train) / BATCH
    if isinstance(config, TrainedConfig):
        fitted = config.for_images(len(category.train))
        passes += PASSES_A_STEP * fitted.num_steps * fitted.batch_size / BATCH
    return passes * seconds


# The page


def write_index(chain: Chain, title: str, looked: Looked) -> Path:
    """Write the page that links everything; its path."""
    out = chain.out
    done = read_json(out / DONE_FILE)["done"]
    pages = {
        "Detector: figures, curves, examples": out / RESULTS / "report.html",
        "Anomaly images: figures by strength": out / INSPECT / "inspect.html",
    }
    links = "".join(
        f'<li><a href="{escape(os.path.relpath(path, out))}">{escape(name)}</a></li>'
        for name, path in pages.items()
        if path.exists()
    )
    found = [*looked.lines, *looked.cautions]
    if chain.diffusion is not None:
        found.append(str(json.loads((out / MODEL / "check.json").read_text())["sentence"]))
    sheet = out / MODEL / "samples.png"
    picture = embedded_image(sheet.read_bytes(), "png", "samples") if sheet.exists() else ""
    code = "".join(f"<li><code>{escape(line)}</code></li>" for line in done)
    page = out / PAGE_FILE
    calibration = Calibration.from_json(read_json(out / DETECTOR / CALIBRATION_FILE))
    promise = bullets(filter(None, (calibration.promise, calibration.note)))
    command = f"<p><code>{escape(chain.next_line)}</code></p>"
    parts = [
        f"<header><h1>{escape(title)}</h1>{bullets(found)}</header>",
        section(
            "Detector",
            command + promise,
            f"It lies in {chain.out / DETECTOR}. For new photographs:",
        ),
        section("Pages", f"<ul>{links}</ul>" if links else ""),
        section("What the diffusion model draws", picture if chain.diffusion is not None else ""),
        section("Commands", f"<ol>{code}</ol>", "Each can be run by hand, with other options."),
    ]
    write_text(page, document(title, parts))
    return page

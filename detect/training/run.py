"""A training run of any method: data, folder, stages and threshold, all in one place."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from detect.calibration import Calibration, calibrate, calibrate_together
from detect.checkpoint import (
    CALIBRATION_FILE,
    WEIGHTS_FILE,
    rounded_to_half,
    save_detector,
)
from detect.config import DetectorConfig, TrainedConfig
from detect.data.material import Material, Prepared, Product, prepare_material
from detect.detector import Detector
from detect.evaluation.testset import TestSet
from detect.evaluation.watch import WATCH_FILE, WatchedTests
from detect.images import to_batch
from detect.scoring import detector_scorer, joined, score_batches
from detect.training.loop import Feed, require_equal_shares, train_stages
from detect.training.stopping import (
    BEST_FILE,
    CHECKS_FILE,
    Checks,
    blended_once,
    without_judges,
)
from synth.base.device import make_accelerator
from synth.base.files import DAMAGE
from synth.base.options import Tracker
from synth.base.progress import Bars
from synth.base.resume import STATE_FILE
from synth.base.run_folder import agreed, require_no_fewer_steps, run_folder, saved_precision
from synth.base.seeding import derive_seed
from synth.base.tracking import require_tracker, tracked
from synth.data.normals import Normals
from synth.pictures import Images

if TYPE_CHECKING:
    from detect.options import TrainOptions

TRAINING_KEY, JUDGES_KEY = 3, 4
"""Keys of the samples' seeds: weights and the moment to stop each have their own."""


def train_detector(
    products: Sequence[Product],
    options: "TrainOptions",
    out: Path,
    bars: Bars,
    tell: Callable[[str], None] = lambda line: None,
    tests: Sequence[TestSet] = (),
    tracker: Tracker = "none",
) -> Calibration | None:
    """Train a detector on one category or several into the folder `out`, or continue it.

    products: of one dataset, at the size that the options give. Held-out images set the thresholds,
    one of all together and one of each category, and nothing else. `tell` gets lines for the user,
    such as what was best on `tests`, which are measured now and then and change nothing. tracker:
    where losses go besides the trace. Returns the calibration of all together, None on all
    processes but the first. Raises UserError for unreadable images, an empty foreground, a folder
    of another configuration, and one that another command is training in.
    """
    judges: list[Images] | None = None
    if options.patience is not None:
        products, judges = set_apart(products)
    require_tracker(tracker)
    accelerator = own_accelerator(options, tracker, out)
    prepared = prepare_material(products, options)
    with folder_of(accelerator, prepared, options, out) as continues:
        prepared.backbone.to(accelerator.device)
        material = Material(
            accelerator=accelerator,
            products=products,
            prepared=prepared,
            bars=bars,
            tell=tell,
            out=out,
            continues=continues,
        )
        recipe = options.row.recipe()
        detector = recipe.build(prepared.config, material).to(accelerator.device)
        num_steps = 0
        if isinstance(prepared.config, TrainedConfig):
            num_steps = learn(detector, prepared.config, material, options, judges, tests)
        detector.eval()
        if not accelerator.is_main_process:
            return None
        if options.half_weights:
            rounded_to_half(detector)
        return save_calibrated(out, detector, num_steps, material, options)


def set_apart(products: Sequence[Product]) -> tuple[list[Product], list[Images]]:
    """Take the judges of --patience out of each product's images to train on."""
    parted = [without_judges(product.normals) for product in products]
    rest = [p._replace(normals=normals) for p, (normals, _) in zip(products, parted, strict=True)]
    return rest, [images for _, images in parted]


def own_accelerator(options: "TrainOptions", tracker: Tracker, out: Path) -> Accelerator:
    """The device and arithmetic of a training; a method without --precision computes in fp32.

    Raises UserError when the processes cannot share a batch evenly.
    """
    method = options.row
    precision = saved_precision(out, options.precision, ("precision",))
    if precision == "auto" and not method.uses("precision"):
        precision = "fp32"
    accelerator = make_accelerator(precision, tracker, out)
    config = method.recipe().configure(options)
    if isinstance(config, TrainedConfig):
        require_equal_shares(accelerator, config.batch_size)
    return accelerator


@contextmanager
def folder_of(
    accelerator: Accelerator, prepared: Prepared[Any], options: "TrainOptions", out: Path
) -> Iterator[bool]:
    """Keep other commands out of `out` and mark it as of this configuration.

    Yields whether it holds earlier work. Raises UserError, on all processes, for a folder of
    another configuration and for fewer steps than it has done.
    """
    stages = {out / name: num_steps for name, num_steps in prepared.config.stage_steps.items()}
    work, made = next(iter(stages), out), STATE_FILE if stages else WEIGHTS_FILE

    def check_steps() -> None:
        for each in stages.items():
            require_no_fewer_steps(*each)

    def with_defaults(recorded: dict[str, Any]) -> dict[str, Any]:
        """Read what an earlier version wrote: fields that it did not know have their defaults."""
        try:
            detector = type(prepared.config).from_json(recorded["detector"])
        except DAMAGE:
            return recorded
        return {**recorded, "detector": without_length(detector)}

    about = recorded_facts(prepared, options, accelerator)
    with run_folder(
        accelerator,
        out,
        about,
        work=work,
        num_steps=stages.get(work, 0),
        made=made,
        upgraded=with_defaults,
    ) as continues:
        agreed(accelerator, check_steps)
        if accelerator.is_main_process and not continues:
            for name in (CHECKS_FILE, BEST_FILE, WATCH_FILE, CALIBRATION_FILE):
                (out / name).unlink(missing_ok=True)  # of another configuration
        yield continues


def recorded_facts(
    prepared: Prepared[DetectorConfig], options: "TrainOptions", accelerator: Accelerator
) -> dict[str, Any]:
    """What the detector depends on, but for the number of steps, which may be raised."""
    learns = options.row.uses("precision")
    about = {
        "method": options.method,
        **prepared.facts,
        "detector": without_length(prepared.config),
        "precision": "bf16" if accelerator.mixed_precision == "bf16" and learns else "fp32",
    }
    return about if options.patience is None else {**about, "patience": options.patience}


def without_length(config: DetectorConfig) -> dict[str, Any]:
    """The configuration as JSON values, but for the number of steps, which may be raised."""
    return {key: value for key, value in config.to_json().items() if key != "num_steps"}


def learn(
    detector: Detector,
    config: TrainedConfig,
    material: Material[Any],
    options: "TrainOptions",
    judges: Sequence[Images] | None,
    tests: Sequence[TestSet],
) -> int:
    """Train the stages, and return the number of steps that the kept weights have had."""
    accelerator, out, bars = material.accelerator, material.out, material.bars
    assert out is not None
    seed = derive_seed(config.seed, TRAINING_KEY)
    dataset = material.samples(seed, official=options.official)
    checks = None
    if judges is not None and options.patience is not None:
        seed = derive_seed(config.seed, JUDGES_KEY)
        judged = material.samples(seed, anomalous_share=1.0, others=judges)
        checks = Checks(out, blended_once(judged), options.patience)
    watch = WatchedTests(out, tests, config.image_size, bars) if tests else None
    num_workers = options.workers
    if num_workers is None:
        num_workers = 4 if accelerator.device.type == "cuda" else 0
    feed = Feed(accelerator, dataset, config.batch_size, num_workers)
    with (
        bars("training", "step", continues=True) as update,
        tracked(accelerator, update) as on_step,
    ):
        train_stages(
            feed,
            detector,
            out,
            seed=config.seed,
            on_step=on_step,
            checks=checks,
            watch=watch,
            tell=material.tell,
        )
    last = [*config.stage_steps.values()][-1]
    kept = last if checks is None else checks.best.step
    if watch is not None:
        material.tell(watch.sentence(kept, last))
    return config.num_steps - last + kept


def save_calibrated(
    out: Path,
    detector: Detector,
    num_steps: int,
    material: Material[Any],
    options: "TrainOptions",
) -> Calibration:
    """Set the thresholds on the held-out images and write the detector; returns that of all."""
    rate, device = options.false_reject_rate, material.accelerator.device
    held = chain.from_iterable(product.normals.held for product in material.products)
    detector.measure_held_out(to_batch([image], device) for image in held)
    own = {
        product.normals.category.name: calibrated_on_held(
            detector, product.normals, rate, device, material.bars
        )
        for product in material.products
    }
    together = calibrate_together([*own.values()])
    by_category = own if len(own) > 1 else None
    half = options.half_weights
    save_detector(out, detector, num_steps, together, by_category, half_weights=half)
    return together


def calibrated_on_held(
    detector: Detector, normals: Normals, rate: float, device: torch.device, bars: Bars
) -> Calibration:
    """The threshold from the held-out images, scored from their files as prediction does."""
    paths = [record.path for record in normals.held_records]
    with bars("calibrating", "image") as update:
        scorer = detector_scorer(detector, device)
        held = joined(score_batches(scorer, paths, normals.size, progress=update))
    return calibrate(held.scores, rate, () if detector.pooled else held.peaks)

"""One loop for every detector: its stages in order, resumable, on one or several processes."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from detect.detector import Detector, Stage
from detect.evaluation.watch import Watch
from detect.scoring import detector_scorer
from detect.training.data import Sample, batches
from detect.training.stopping import BEST_FILE, Checks, measure, moments
from synth.base.errors import UserError
from synth.base.files import atomic_path
from synth.base.resume import OnStep, StepFunction, run_steps
from synth.base.run_folder import agreed, num_steps_done

EMA_DECAY = 0.999
"""Upper limit of the averaging decay (1 + n) / (10 + n) at step n."""
NUM_NORM_BATCHES = 32


def train_detector(
    accelerator: Accelerator,
    detector: Detector,
    dataset: Dataset[Sample],
    *,
    batch_size: int,
    folder: Path,
    num_workers: int = 0,
    on_step: OnStep | None = None,
    checkpoint_steps: int | None = None,
    checks: Checks | None = None,
    watch: Watch | None = None,
    average: bool = True,
) -> None:
    """Train all stages in place, each gone on with from its state in `folder`/<stage>.

    The averaged weights are kept, and batch normalisation gets statistics of its own for them: a
    single last step, and RRS's statistics that are nearly those of one batch, make results of short
    trainings a matter of luck. Without `average` both stay as the last step left them. With checks
    the last stage ends where they say, and the best of the checked weights are kept. A watch
    measures and changes nothing. batch_size: images per step over all processes. Raises UserError
    when the batch cannot be shared evenly, and when a loss is not finite.
    """
    require_equal_shares(accelerator, batch_size)
    detector.to(accelerator.device)
    detector.train()
    stages = detector.stages()
    for stage in stages:
        detector.zero_grad()  # an earlier stage's losses leave gradients in all parameters
        optimizer = stage.make_optimizer()
        ema = EMAModel(stage.parameters, decay=EMA_DECAY, foreach=True)
        step_function = stage_steps(
            accelerator, stage, optimizer, ema, dataset, batch_size, num_workers
        )
        work = folder / stage.name
        checked, watched = (checks, watch) if stage is stages[-1] else (None, None)
        reached: int | None = None
        for goal in goals(stage.num_steps, checked, watched, num_steps_done(work)):
            run_steps(
                accelerator,
                step_function,
                folder=work,
                num_steps=goal,
                model=detector,
                optimizer=optimizer,
                ema=ema,
                checkpoint_steps=checkpoint_steps,
                on_step=of_all(on_step, stage.num_steps),
                start=reached,
            )
            reached = goal
            if checked is not None or (watched is not None and watched.lacks(goal)):
                kept = as_averaged(accelerator, detector, stage, ema, dataset, batch_size)
                with kept if average else nullcontext():
                    look(accelerator, detector, checked, watched, goal, batch_size)
                detector.train()
            if checked is not None and checked.finished:
                break
        if average:
            ema.copy_to(stage.parameters)
    if checks is None and average:
        settle_batch_norms(accelerator, detector, dataset, batch_size)
    elif checks is not None:
        accelerator.wait_for_everyone()
        load_trained(detector, checks.folder / BEST_FILE)
    detector.eval()


def require_equal_shares(accelerator: Accelerator, batch_size: int) -> None:
    """Raise UserError where the processes cannot share a batch evenly."""
    if batch_size % accelerator.num_processes:
        raise UserError(
            f"--batch-size: got {batch_size}, must be a multiple of the "
            f"{accelerator.num_processes} processes"
        )


def of_all(on_step: OnStep | None, num_steps: int) -> OnStep | None:
    """Tell of steps out of all of a stage's, not out of those until the next check."""
    if on_step is None:
        return None
    return lambda done, _, terms: on_step(done, num_steps, terms)


def goals(num_steps: int, checks: Checks | None, watch: Watch | None, num_done: int) -> list[int]:
    """The steps to train to, one after the other; the detector is looked at after each.

    A watch that begins late takes no part in the steps that are already done.
    """
    if checks is not None:
        return checks.goals(num_steps)
    if watch is None:
        return [num_steps]
    last = [num_steps]  # whatever was measured: its state has to be read
    return [n for n in moments(num_steps)[:-1] if n >= num_done and watch.lacks(n)] + last


@contextmanager
def as_averaged(
    accelerator: Accelerator,
    detector: Detector,
    stage: Stage,
    ema: EMAModel,
    dataset: Dataset[Sample],
    batch_size: int,
) -> Iterator[None]:
    """Put the weights in place that would be kept if training ended now; put them back after."""
    buffers = {name: buffer.clone() for name, buffer in detector.named_buffers()}
    ema.store(stage.parameters)
    ema.copy_to(stage.parameters)
    settle_batch_norms(accelerator, detector, dataset, batch_size)
    yield
    ema.restore(stage.parameters)
    for name, buffer in detector.named_buffers():
        buffer.copy_(buffers[name])


def look(
    accelerator: Accelerator,
    detector: Detector,
    checks: Checks | None,
    watch: Watch | None,
    step: int,
    batch_size: int,
) -> None:
    """Measure the detector as it is, on the test images and by the judges, and keep its best.

    The first process measures for all: one that came to another figure would stop at another step,
    and the others would wait for it. The watch comes first: where a check is known, its row is too.
    """
    scorer = detector_scorer(detector, accelerator.device)
    if watch is not None and watch.lacks(step):
        seen = agreed(accelerator, lambda: watch.measure(scorer, step))
        watch.add(seen, write=accelerator.is_main_process)
    if checks is not None:
        row = agreed(accelerator, lambda: measure(scorer, checks.test, step, batch_size))
        if not checks.rows or row.value > checks.best.value:
            save_trained(accelerator, detector, checks.folder / BEST_FILE)
        checks.add(row, write=accelerator.is_main_process)


def save_trained(accelerator: Accelerator, detector: Detector, path: Path) -> None:
    """Write what training changes: parameters that are not frozen, and buffers."""
    if not accelerator.is_main_process:
        return
    frozen = {name for name, p in detector.named_parameters() if not p.requires_grad}
    state = {n: t.contiguous() for n, t in detector.state_dict().items() if n not in frozen}
    with atomic_path(path) as partial:
        save_file(state, partial)


def load_trained(detector: Detector, path: Path) -> None:
    """Read what `save_trained` wrote. Raises UserError when it is damaged or of another model."""
    try:
        detector.load_state_dict({**detector.state_dict(), **load_file(path)}, strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: damaged ({reason}); delete {path.parent} and train again") from (
            error
        )


def stage_steps(
    accelerator: Accelerator,
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    dataset: Dataset[Sample],
    batch_size: int,
    num_workers: int,
) -> StepFunction:
    """The steps of one stage, to be called in order from any first one; each returns its losses."""
    data = None

    def step_function(step: int) -> dict[str, Tensor]:
        nonlocal data
        if data is None:
            data = batches(
                dataset,
                batch_size,
                step,
                stage.num_steps,
                accelerator.device,
                process=accelerator.process_index,
                num_processes=accelerator.num_processes,
                num_workers=num_workers,
            )
        with accelerator.autocast():
            terms = stage.loss(next(data))
        loss = torch.stack(list(terms.values())).sum()
        accelerator.backward(loss)
        average_gradients(accelerator, stage.parameters)
        norm = nn.utils.get_total_norm([p.grad for p in stage.parameters if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        ema.step(stage.parameters)
        return {"loss": loss, **terms, "gradient_norm": norm}

    return step_function


@torch.no_grad()
def settle_batch_norms(
    accelerator: Accelerator, detector: Detector, dataset: Dataset[Sample], batch_size: int
) -> None:
    """Replace running statistics by the mean over NUM_NORM_BATCHES batches of training samples.

    Processes share each batch, as in training: their normalisations have to be `GlobalBatchNorm2d`.
    Frozen parts, which stay in evaluation mode, keep theirs.
    """
    detector.train()
    norms = [m for m in detector.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a cumulative average
    if norms:
        shares = batches(
            dataset,
            batch_size,
            0,
            NUM_NORM_BATCHES,
            accelerator.device,
            process=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        for batch in shares:
            detector(batch.image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def average_gradients(accelerator: Accelerator, parameters: tuple[nn.Parameter, ...]) -> None:
    """Each gradient becomes its mean over the processes; nothing to do for a single one."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            mean = accelerator.reduce(parameter.grad, reduction="mean")
            assert isinstance(mean, Tensor)
            parameter.grad.copy_(mean)

"""One loop for every detector: its stages in order, resumable, on one or several processes."""

import math
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from detect.detector import Detector, Stage
from detect.training.data import Sample, batches
from synth.errors import UserError
from synth.resume import OnStep, StepFunction, run_steps

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
) -> None:
    """Train all stages in place, each gone on with from its state in `folder`/<stage>.

    The averaged weights are kept, and batch normalisation gets statistics of its own for them: a
    single last step, and RRS's statistics that are nearly those of one batch, make results of short
    trainings a matter of luck. batch_size: images per step over all processes. Raises UserError
    when the batch cannot be shared evenly, and when a loss is not finite.
    """
    if batch_size % accelerator.num_processes:
        raise UserError(
            f"--batch-size: got {batch_size}, must be a multiple of the "
            f"{accelerator.num_processes} processes"
        )
    detector.to(accelerator.device)
    detector.train()
    for stage in detector.stages():
        detector.zero_grad()  # an earlier stage's losses leave gradients in all parameters
        optimizer = stage.make_optimizer()
        ema = EMAModel(stage.parameters, decay=EMA_DECAY, foreach=True)
        step_function = stage_steps(
            accelerator, stage, optimizer, ema, dataset, batch_size, num_workers
        )
        run_steps(
            accelerator,
            step_function,
            folder=folder / stage.name,
            num_steps=stage.num_steps,
            model=detector,
            optimizer=optimizer,
            ema=ema,
            checkpoint_steps=checkpoint_steps,
            on_step=on_step,
        )
        ema.copy_to(stage.parameters)
    settle_batch_norms(accelerator, detector, dataset, batch_size)
    detector.eval()


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
        limit = math.inf if stage.max_grad_norm is None else stage.max_grad_norm
        norm = nn.utils.clip_grad_norm_(stage.parameters, limit)
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

"""One loop for every detector: its stages in order, resumable, on one or several processes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import Dataset

from detect.batch_norm import BATCH_NORMS, require_global_norms
from detect.data.samples import Sample, batches
from detect.detector import Batch, Detector, Stage
from detect.evaluation.watch import WatchedTests
from detect.scoring import detector_scorer
from detect.training.gradients import average_gradients
from detect.training.stage_state import (
    OwnState,
    alone,
    forget_if_outdated,
    load_trained,
    save_trained,
    set_modes,
)
from detect.training.stopping import BEST_FILE, Checks, make_check, moments
from synth.base.errors import UserError
from synth.base.resume import OnStep, run_steps
from synth.base.run_folder import agreed, num_steps_done
from synth.base.seeding import generator

EMA_DECAY = 0.999
"""Upper limit of the averaging decay (1 + n) / (10 + n) at step n."""
NUM_NORM_BATCHES = 32


class Feed(NamedTuple):
    """What every stage is trained on: samples, in batches of so many over all processes."""

    accelerator: Accelerator
    dataset: Dataset[Sample]
    batch_size: int
    num_workers: int = 0

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Yield this process's share of batches first..last-1."""
        return batches(
            self.dataset,
            self.batch_size,
            first,
            last,
            self.accelerator.device,
            process=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            num_workers=self.num_workers,
        )


def train_stages(
    feed: Feed,
    detector: Detector,
    folder: Path,
    *,
    seed: int = 0,
    on_step: OnStep | None = None,
    checkpoint_steps: int | None = None,
    checks: Checks | None = None,
    watch: WatchedTests | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Train all stages in place, each continued from its state in `folder`/<stage>.

    A stage begins with what the earlier ones made. When one of them has changed, such as its number
    of steps, the later ones are trained again, and `tell` gets a line. With checks the last stage
    ends at their sign, and the best of the checked weights are kept. A watch measures after some
    steps of the last stage and changes nothing. Raises UserError when the batch cannot be shared
    evenly, and when a loss is not finite.
    """
    require_equal_shares(feed.accelerator, feed.batch_size)
    detector.to(feed.accelerator.device)
    stages = detector.stages()
    before: list[dict[str, Any]] = []
    for number, stage in enumerate(stages):
        done, total = sum(each["num_steps"] for each in before), sum(s.num_steps for s in stages)
        looks = Onlookers(checks, watch) if stage is stages[-1] else Onlookers()
        work = folder / stage.name
        with alone(detector, stage):
            require_global_norms(detector)
            run = StageRun(feed, detector, stage, (seed, number))
            if before and agreed(feed.accelerator, partial(forget_if_outdated, work, before)):
                looks.forget()
                tell(f"{stage.name} is trained again: {before[-1]['name']}, before it, has changed")
            run.train(work, counted_on(on_step, done, total), checkpoint_steps, looks)
        before.append(run.facts)
    detector.eval()


def require_equal_shares(accelerator: Accelerator, batch_size: int) -> None:
    """Raise UserError when the processes cannot share a batch evenly."""
    if batch_size % accelerator.num_processes:
        raise UserError(
            f"--batch-size: got {batch_size}, must be a multiple of the "
            f"{accelerator.num_processes} processes"
        )


def counted_on(on_step: OnStep | None, before: int, total: int) -> OnStep | None:
    """Count the steps of all stages, not those of one stage up to its next check."""
    if on_step is None:
        return None
    return lambda done, _, terms: on_step(before + done, total, terms)


class StageRun:
    """A stage in training: its optimiser, its averages and its part of the detector's state."""

    def __init__(
        self, feed: Feed, detector: Detector, stage: Stage, seeds: tuple[int, ...]
    ) -> None:
        """Begin with the detector as it is. seeds: of the random draws of the loss."""
        self.feed, self.detector, self.stage, self.seeds = feed, detector, stage, seeds
        self.parameters = stage.trained()
        self.optimizer = stage.optimizer(self.parameters, lr=stage.lr)
        self.ema: EMAModel | None = None
        if stage.average:
            self.ema = EMAModel(self.parameters, decay=EMA_DECAY, foreach=True)
        self.own = OwnState(detector, stage)
        self._batches: Iterator[Batch] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the later stages depend on, as JSON values."""
        names = ("lr", "betas", "momentum", "eps", "weight_decay")
        settings = {n: v for n, v in self.optimizer.defaults.items() if n in names}
        stage = self.stage
        return {
            "name": stage.name,
            "num_steps": stage.num_steps,
            "optimizer": type(self.optimizer).__name__,
            **settings,
            "max_norm": stage.max_norm,
            "average": stage.average,
        }

    def train(
        self, work: Path, on_step: OnStep | None, checkpoint_steps: int | None, looks: "Onlookers"
    ) -> None:
        """Take all steps that are left, with the state in `work`; keep the weights of the end."""
        reached: int | None = None
        for goal in looks.goals(self.stage.num_steps, num_steps_done(work)):
            run_steps(
                self.feed.accelerator,
                self.step,
                folder=work,
                num_steps=goal,
                model=self.own,
                optimizer=self.optimizer,
                ema=self.ema,
                checkpoint_steps=checkpoint_steps,
                on_step=on_step,
                start=reached,
            )
            reached = goal
            if looks.wanted(goal):
                with self.as_kept():
                    looks.look(self, goal)
            if looks.finished:
                break
        if looks.checks is not None:
            self.feed.accelerator.wait_for_everyone()
            load_trained(self.own, looks.checks.folder / BEST_FILE)
        elif self.ema is not None:
            self.ema.copy_to(self.parameters)
            settle_batch_norms(self.feed, self.detector)

    def step(self, step: int) -> dict[str, Tensor]:
        """Do one step; they are done in order, from any first one. Returns its losses."""
        accelerator, stage = self.feed.accelerator, self.stage
        if self._batches is None:
            self._batches = self.feed.batches(step, stage.num_steps)
        g = generator(*self.seeds, step)
        with accelerator.autocast():
            terms = stage.loss(next(self._batches), g)
        loss = torch.stack(list(terms.values())).sum()
        accelerator.backward(loss)
        average_gradients(accelerator, self.parameters)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if stage.max_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, stage.max_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.parameters)
        return {"loss": loss, **terms, "gradient_norm": norm}

    @contextmanager
    def as_kept(self) -> Iterator[None]:
        """Put the weights in place that would be kept if training ended now; put them back after.

        A single last step, and RRS's statistics that are nearly those of one batch, would make
        results of short trainings a matter of luck: the weights are averaged, with statistics of
        their own.
        """
        last = {name: tensor.clone() for name, tensor in self.own.state_dict().items()}
        if self.ema is not None:
            self.ema.copy_to(self.parameters)
            settle_batch_norms(self.feed, self.detector)
        yield
        self.own.load_state_dict(last)
        set_modes(self.detector, self.stage)


@torch.no_grad()
def settle_batch_norms(feed: Feed, detector: Detector) -> None:
    """Replace running statistics by the mean over NUM_NORM_BATCHES batches of training samples.

    Those of normalisations in training mode, that is of the stage. Processes share each batch.
    """
    norms = [m for m in detector.modules() if isinstance(m, BATCH_NORMS) and m.training]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a cumulative average
    for batch in feed._replace(num_workers=0).batches(0, NUM_NORM_BATCHES):
        detector(batch.image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


# Between the steps


class Onlookers(NamedTuple):
    """What looks at a detector between steps: checks that may end the training, and a watch."""

    checks: Checks | None = None
    watch: WatchedTests | None = None

    def goals(self, num_steps: int, num_done: int) -> list[int]:
        """The steps to train to, one after the other; the detector is looked at after each.

        A watch that begins late takes no part in the steps that are already done.
        """
        if self.checks is not None:
            return self.checks.goals(num_steps)
        if self.watch is None:
            return [num_steps]
        last = [num_steps]  # whatever was measured: its state has to be read
        due = [n for n in moments(num_steps)[:-1] if n >= num_done and self.watch.lacks(n)]
        return due + last

    def wanted(self, step: int) -> bool:
        """Whether the detector is to be looked at after so many steps."""
        return self.checks is not None or (self.watch is not None and self.watch.lacks(step))

    @property
    def finished(self) -> bool:
        """Whether the checks end the training."""
        return self.checks is not None and self.checks.finished

    def forget(self) -> None:
        """Drop what was seen of a training that is done again."""
        for each in (self.checks, self.watch):
            if each is not None:
                each.forget()

    def look(self, run: StageRun, step: int) -> None:
        """Measure the detector as it is, on the test images and by the judges, and keep its best.

        The first process measures for all: one that came to another figure would stop at another
        step, and the others would wait for it. The watch comes first: where a check is known, its
        row is too.
        """
        accelerator = run.feed.accelerator
        scorer = detector_scorer(run.detector, accelerator.device)
        checks, watch = self
        if watch is not None and watch.lacks(step):
            seen = agreed(accelerator, lambda: watch.measure(scorer, step))
            watch.add(seen, write=accelerator.is_main_process)
        if checks is not None:
            batch_size = run.feed.batch_size
            row = agreed(accelerator, lambda: make_check(scorer, checks.test, step, batch_size))
            if accelerator.is_main_process and not (checks.rows and row.value <= checks.best.value):
                save_trained(run.own, checks.folder / BEST_FILE)
            checks.add(row, write=accelerator.is_main_process)

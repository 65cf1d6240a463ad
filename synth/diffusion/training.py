"""The DDPM training loop: batches, hybrid loss, averaged weights.

N images, C channels, H x W pixels; K categories, one unless the network is conditional.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor

from synth.base.backbones import seeded_init
from synth.base.errors import UserError
from synth.base.resume import OnStep, run_steps
from synth.base.seeding import derive_seed, generator
from synth.diffusion.config import NUM_TRAIN_TIMESTEPS, RunConfig, TrainConfig
from synth.diffusion.ddpm import (
    NoiseSchedule,
    add_noise,
    build_unet,
    hybrid_loss,
    noise_schedule,
    stride_loss,
    strided_schedule,
)
from synth.diffusion.prediction import Prediction
from synth.pictures import Images

MAX_GRADIENT_NORM = 1.0
CHAIN_STRIDE = 50
"""Timesteps that one reverse step jumps in SDAS's chain of 20; v learns to serve such jumps too."""
NUM_TIMED = 4
"""Steps that tell how many fit into a time."""

Look = Callable[[int, UNet2DModel], None]
"""Shown (steps done, the network with averaged weights) on the main process."""


class Batch(NamedTuple):
    """x_0 in [-1, 1] and eps, float32 [N, C, H, W]; timesteps t and labels, int64 [N].

    label is None for a network that is not conditional.
    """

    x_0: Tensor
    eps: Tensor
    t: Tensor
    label: Tensor | None

    def parts(self, number: int, device: torch.device) -> "list[Batch]":
        """Cut into `number` batches of equal size on `device`."""
        cut = [[None] * number if t is None else t.to(device).chunk(number) for t in self]
        return [Batch(*fields) for fields in zip(*cut, strict=True)]


class Task(NamedTuple):
    """What is learned: the full chain, its jumps of CHAIN_STRIDE, and what the network predicts."""

    full: NoiseSchedule
    strided: NoiseSchedule
    prediction: Prediction


class Learner:
    """A network in training: its optimiser, its averaged weights, and what a step does.

    images: one array per category, uint8 [N, H, W, 3] at the network's size. initial: weights that
    take the place of random ones, by name; the others stay random. Raises UserError when the batch
    cannot be shared evenly by the processes and their parts.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        images: Sequence[Images],
        run: RunConfig = RunConfig(),  # noqa: B008 (frozen)
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        shares = accelerator.num_processes * run.accumulate
        if config.batch_size % shares:
            raise UserError(
                f"batch_size: got {config.batch_size}, must be a multiple of {shares}: "
                f"{accelerator.num_processes} processes times --accumulate {run.accumulate}"
            )
        self.accelerator, self.config, self.images, self.run = accelerator, config, images, run
        with seeded_init(derive_seed(config.seed)):
            self.unet = build_unet(config.unet)
        self.unet.load_state_dict({**self.unet.state_dict(), **(initial or {})})
        if run.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if accelerator.device.type == "cuda":  # a CPU's group norms take five times as long so
            self.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stubs)
        optimizer = torch.optim.Adam(self.unet.parameters(), lr=config.learning_rate, fused=True)
        self.model, self.optimizer = accelerator.prepare(self.unet, optimizer)
        self.ema = EMAModel(self.unet.parameters(), decay=config.ema_decay, foreach=True)
        self.task = Task(
            noise_schedule().to(accelerator.device),
            strided_schedule(CHAIN_STRIDE).to(accelerator.device),
            config.unet.predicted,
        )

    def step(self, step: int) -> dict[str, Tensor]:
        """Do one step; its mean losses and the norm of its gradient."""
        accelerator, config = self.accelerator, self.config
        batch = draw_batch(
            config, self.images, step, accelerator.process_index, accelerator.num_processes
        )
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(step)
        terms = backward(accelerator, self.model, self.task, batch, self.run.accumulate)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        assert norm is not None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.unet.parameters())
        return {**terms, "gradient_norm": norm}

    def seconds_per_step(self) -> float:
        """Take NUM_TIMED steps, and one before them that prepares; the median of their times."""
        seconds = []
        for step in range(1 + NUM_TIMED):
            start = time.perf_counter()
            float(self.step(step)["loss"])  # waits for a GPU
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])


def train_ddpm(
    accelerator: Accelerator,
    config: TrainConfig,
    images: Sequence[Images],
    folder: Path,
    on_step: OnStep | None = None,
    *,
    run: RunConfig = RunConfig(),  # noqa: B008 (frozen)
    initial: Mapping[str, Tensor] | None = None,
    look: Look | None = None,
    checkpoint_steps: int | None = None,
) -> UNet2DModel:
    """Train as `Learner` says; the state in `folder` is continued when there is one.

    look: called every `run.sample_every` steps. Returns the network with averaged weights, on its
    device. Raises UserError as `Learner`, and when the loss diverges.
    """
    learner = Learner(accelerator, config, images, run, initial)
    unet, ema = learner.unet, learner.ema

    def after_step(done: int, total: int, terms: Mapping[str, float]) -> None:
        due = run.sample_every is not None and done % run.sample_every == 0
        if look is not None and due and accelerator.is_main_process:
            with averaged(ema, unet):
                look(done, unet)
        if on_step is not None:
            on_step(done, total, terms)

    run_steps(
        accelerator,
        learner.step,
        folder=folder,
        num_steps=config.num_steps,
        model=unet,
        optimizer=learner.optimizer,
        ema=ema,
        checkpoint_steps=checkpoint_steps,
        on_step=after_step,
    )
    ema.copy_to(unet.parameters())
    return unet.eval()


@contextmanager
def averaged(ema: EMAModel, unet: UNet2DModel) -> Iterator[None]:
    """Put the averaged weights in place for a while; those in training come back as they were."""
    ema.store(unet.parameters())
    ema.copy_to(unet.parameters())
    unet.eval()
    try:
        yield
    finally:
        ema.restore(unet.parameters())
        unet.train()


def backward(
    accelerator: Accelerator,
    model: torch.nn.Module,
    task: Task,
    batch: Batch,
    parts: int = 1,
) -> dict[str, Tensor]:
    """Accumulate the gradient of a batch's mean loss over `parts` of equal size; the mean terms.

    Processes add up their gradients with the last part.
    """
    means: dict[str, Tensor] = {}
    for number, part in enumerate(batch.parts(parts, accelerator.device), start=1):
        with nullcontext() if number == parts else accelerator.no_sync(model):
            terms = losses(model, task, part)
            accelerator.backward(terms["loss"] / parts)
        for name, term in terms.items():
            means[name] = means.get(name, torch.zeros_like(term)) + term.detach() / parts
    return means


def losses(model: torch.nn.Module, task: Task, batch: Batch) -> dict[str, Tensor]:
    """The mean losses of one batch, scalars; "loss" is the sum of the others."""
    x_0, eps, t, label = batch
    x_t = add_noise(task.full, x_0, eps, t)
    x = task.prediction.input(x_t, task.full.alpha_bar[t])
    layout = torch.channels_last if x.is_cuda else torch.contiguous_format
    output = model(x.contiguous(memory_format=layout), t, class_labels=label).sample
    hybrid = hybrid_loss(task.full, x_0, eps, t, output, task.prediction)
    stride_vlb = stride_loss(task.strided, CHAIN_STRIDE, x_0, eps, t, output, task.prediction)
    terms = {"mse": hybrid.mse.mean(), "vlb": hybrid.vlb.mean(), "stride_vlb": stride_vlb.mean()}
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}


def draw_batch(
    config: TrainConfig,
    images: Sequence[Images],
    step: int,
    process: int = 0,
    num_processes: int = 1,
) -> Batch:
    """A process's share of batch `step`. images: [N, H, W, 3] for each category, by label.

    Position p of the batch has a generator of its own, and images come in shuffled epochs over all
    positions, so that the batch is the same however many processes share it. Categories take turns,
    whatever their numbers of images: the same number of anomaly images is drawn from each, so each
    has to be learnt equally well.
    """
    rows, noises, timesteps, labels = [], [], [], []
    for position in range(process, config.batch_size, num_processes):
        turn, label = divmod(step * config.batch_size + position, len(images))
        epoch, place = divmod(turn, len(images[label]))
        keys = (epoch,) if len(images) == 1 else (epoch, label)
        order = np.random.default_rng(derive_seed(config.seed, 1, *keys))
        g = generator(config.seed, 2, step, position)
        image = images[label][order.permutation(len(images[label]))[place]]
        channels = augment(config, image, g)[..., : config.unet.num_channels].copy()
        rows.append(torch.from_numpy(channels).permute(2, 0, 1))
        timesteps.append(draw_timestep(config, g))
        noises.append(torch.randn(config.unet.num_channels, *config.unet.image_size, generator=g))
        labels.append(label)
    x_0 = torch.stack(rows).float() / 127.5 - 1
    label = None if config.unet.num_categories is None else torch.tensor(labels)
    return Batch(x_0, torch.stack(noises), torch.stack(timesteps), label)


def draw_timestep(config: TrainConfig, g: torch.Generator) -> Tensor:
    """The timestep of one image, int64."""
    if config.timestep_power == 1:
        return torch.randint(NUM_TRAIN_TIMESTEPS, (), generator=g)
    u = torch.rand((), generator=g, dtype=torch.float64)
    return (NUM_TRAIN_TIMESTEPS * u**config.timestep_power).long()


def augment(config: TrainConfig, image: Images, g: torch.Generator) -> Images:
    """One image [H, W, 3], mirrored and turned as far as the configuration allows."""
    flip_horizontal, flip_vertical = (torch.rand(2, generator=g) < 0.5).tolist()
    if config.flip_horizontal and flip_horizontal:
        image = image[:, ::-1]
    if config.flip_vertical and flip_vertical:
        image = image[::-1]
    if config.rotate:
        image = np.rot90(image, int(torch.randint(4, (), generator=g)))
    return image

"""The interface of every detector: what to train, in order, and how to score images.

Shapes: N images, H x W pixels. Images are RGB in [0, 1]; a detector normalises them itself, so
prediction and export need nothing but its weights file.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from synth.base.errors import UserError


class Scores(NamedTuple):
    """Scores of images; higher is more anomalous.

    image: float32 [N], one score per image.
    maps: float32 [N, H, W], one score per pixel, at the resolution of the images.
    """

    image: Tensor
    maps: Tensor


class Batch(NamedTuple):
    """Training images; where nothing was blended in, `image` equals `normal` and `mask` is empty.

    image: float32 [N, 3, H, W], RGB in [0, 1], blended (A) or normal.
    normal: float32 [N, 3, H, W], RGB in [0, 1], the same images untouched (I).
    mask: bool or float32 [N, H, W], 1 where `image` is anomalous (M).
    number: int64 [N] on the CPU, which normal image of the training set each is; None: unknown.
    """

    image: Tensor
    normal: Tensor
    mask: Tensor
    number: Tensor | None = None


Loss = Callable[[Batch, torch.Generator], dict[str, Tensor]]
"""A batch to named scalar float32 terms, whose sum is minimised. Random draws come from the
generator (on the CPU), which depends on the seed, the stage and the step: so resuming is exact. It
is the same in all processes: what differs between samples is drawn by `batch_norm.uniform`."""


ADAM = partial(torch.optim.Adam, fused=True)
"""The fused step is nine times as fast on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training: which parts learn from which loss, for how long.

    modules: in training mode during the stage, while all else is frozen and in evaluation mode.
    parameters: what learns besides the parameters of the modules. optimizer: called with the
    parameters and `lr`, such as `partial(Adam, eps=1e-4)`. max_norm: of the gradients; None does
    not clip. average: keep the mean of the weights over the steps, and settle batch normalisations
    for it, instead of the last step's.
    """

    name: str
    num_steps: int
    loss: Loss
    lr: float
    modules: tuple[nn.Module, ...] = ()
    parameters: tuple[nn.Parameter, ...] = ()
    optimizer: Callable[..., Optimizer] = ADAM
    max_norm: float | None = None
    average: bool = True

    def trained(self) -> tuple[nn.Parameter, ...]:
        """Return all parameters that learn: those that their modules have not frozen."""
        found = [p for module in self.modules for p in module.parameters()]
        return tuple(dict.fromkeys(p for p in (*found, *self.parameters) if p.requires_grad))


class Detector(nn.Module):
    """A network that is trained by stages and scores images.

    A subclass defines `forward(images) -> Scores`, which is also the exported graph, and `stages`
    if there is anything to train.
    """

    pooled: ClassVar[bool] = True
    """Whether an image's score is `image_scores` of its map; otherwise it is the method's own."""

    @property
    def facts(self) -> str:
        """How large it is, in words for tables."""
        num_trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return f"{num_trained / 1e6:.1f} M trained parameters"

    def stages(self) -> list[Stage]:
        """Return what to train, in order: nothing, unless a subclass says otherwise."""
        return []

    def measure_held_out(self, batches: Iterable[Tensor]) -> None:
        """Measure, once trained, what held-out normal images tell: nothing, unless overridden.

        batches: float32 [N, 3, H, W], RGB in [0, 1].
        """

    def with_state(self, state: Mapping[str, Tensor]) -> Self:
        """Return itself with a saved state, all of it and nothing else.

        Raises UserError when the state does not belong to the configuration.
        """
        try:
            self.load_state_dict(state, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{type(self).__name__} weights: they do not fit the configuration "
                f"({reason[:300]}); use the config.json and weights of one folder"
            ) from error
        return self

    @torch.no_grad()
    def predict(self, images: Tensor) -> Scores:
        """Score images in evaluation mode, without gradients; the training mode is restored.

        images: float32 [N, 3, H, W], RGB in [0, 1].
        """
        was_training = self.training
        self.eval()
        try:
            return self(images)
        finally:
            self.train(was_training)

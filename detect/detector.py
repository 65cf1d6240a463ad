"""The interface every detector keeps: what to train, in order, and how to score images.

Shapes: N images, H x W pixels. Images are RGB in [0, 1]; a detector normalises them itself, so one
weights file is all that prediction and export need.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from synth.base.errors import UserError


class Scores(NamedTuple):
    """What a detector says about images, higher is more anomalous.

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


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training: which parameters learn from which loss, for how long.

    `loss` maps a batch to named scalar float32 terms; their sum is minimised by Adam.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    num_steps: int
    loss: Callable[[Batch], dict[str, Tensor]]
    lr: float

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return a fresh Adam over the stage's parameters."""
        return torch.optim.Adam(self.parameters, lr=self.lr)


class Detector(nn.Module):
    """A network that is trained by stages and scores images.

    A subclass defines `forward(images) -> Scores`, the graph that is exported, and `stages` if
    there is anything to train.
    """

    def stages(self) -> list[Stage]:
        """Return what to train, in order: nothing, unless a subclass says otherwise."""
        return []

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

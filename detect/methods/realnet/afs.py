"""AFS: Anomaly-aware Feature Selection.

Source: RealNet, section on AFS. phi_k is the backbone's layer k, A the blended image, I the normal
image, M the mask of the anomaly.
Shapes: N images, layer k has C_k channels on h x w pixels, of which m_k are kept.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detect.detector import Batch
from synth.base.errors import UserError

FeatureExtractor = Callable[[Tensor], Sequence[Tensor]]
"""Images float32 [N, 3, H, W], RGB in [0, 1] -> feature maps [N, C_k, h_k, w_k] per layer."""


class AFSResult(NamedTuple):
    """The channels AFS keeps, and the evidence.

    indices: per layer, int64 [m_k], ascending.
    scores: per layer, float32 [C_k], mean squared misfit between residual and mask; lower is
    better; infinite where a score was not a number.
    """

    indices: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]


Losses = Sequence[Sequence[Tensor]]
"""Per batch and layer, float64 [C_k]."""


def select_channels(
    features: FeatureExtractor,
    batches: Iterable[Batch],
    num_channels: Sequence[int],
    joined: Callable[[Losses], Losses] = lambda losses: losses,
) -> AFSResult:
    """Keep the m_k channels of each layer whose residual looks most like the anomaly mask.

    Source: RealNet, AFS: L_i = mean ||F(|phi(A) - phi(I)|^2)_i - M||^2, averaged over batches.
    batches: blended images only; every layer is scored in one pass over them. joined: adds the
    losses of other processes. Raises UserError without batches, or when a layer has fewer channels
    than asked for.
    """
    losses = joined([batch_losses(features, batch) for batch in batches])
    if not losses:
        raise UserError("AFS: got no blended images; it needs at least one batch of them")
    return best_channels(mean_scores(losses), num_channels)


def mean_scores(losses: Losses) -> tuple[Tensor, ...]:
    """Return the scores of all channels, float32 [C_k] per layer, from the losses of each batch.

    The mean is taken in float64 over all batches at once.
    """
    means = [torch.stack(layer).mean(0).float() for layer in zip(*losses, strict=True)]
    return tuple(score.nan_to_num(nan=float("inf")) for score in means)


def best_channels(scores: Sequence[Tensor], num_channels: Sequence[int]) -> AFSResult:
    """Keep the m_k channels of lowest score; of equal ones the first.

    Raises UserError when a layer has fewer channels than asked for.
    """
    _check_num_channels(num_channels, [len(score) for score in scores])
    indices = [
        score.argsort(stable=True)[:m].sort().values
        for score, m in zip(scores, num_channels, strict=True)
    ]
    return AFSResult(tuple(indices), tuple(scores))


@torch.no_grad()
def batch_losses(features: FeatureExtractor, batch: Batch) -> list[Tensor]:
    """Return L of every channel of every layer for one batch, float64 [C_k] each, on the CPU."""
    N = len(batch.image)
    mask = batch.mask.float().unsqueeze(1)  # [N, 1, H, W]
    return [
        channel_losses(maps[:N], maps[N:], mask)
        for maps in features(torch.cat([batch.image, batch.normal]))
    ]


def channel_losses(phi_A: Tensor, phi_I: Tensor, mask: Tensor) -> Tensor:
    """Return each channel's misfit between its normalised squared residual and the mask.

    The residual is stretched to [0, 1] per channel over the whole batch and all pixels. The paper
    resizes the features to the mask; here, as in the authors' code, the mask is resized.
    phi_A, phi_I: [N, C, h, w]; mask: float32 [N, 1, H, W], 0 or 1. Returns float64 [C].
    """
    d = (phi_A.float() - phi_I.float()).square()
    low, high = d.amin((0, 2, 3), keepdim=True), d.amax((0, 2, 3), keepdim=True)
    d_hat = (d - low) / (high - low + 1e-4)
    M = F.interpolate(mask, size=d.shape[-2:], mode="nearest")  # [N, 1, h, w]
    return (d_hat - M).square().mean((0, 2, 3)).cpu().double()


def _check_num_channels(num_channels: Sequence[int], available: Sequence[int]) -> None:
    if len(num_channels) != len(available):
        raise UserError(
            f"AFS num_channels: got {len(num_channels)} counts for {len(available)} layers; "
            "give one per backbone layer"
        )
    for layer, (m, C) in enumerate(zip(num_channels, available, strict=True), start=1):
        if not 1 <= m <= C:
            raise UserError(
                f"AFS num_channels: got {m} for backbone layer number {layer} in use; "
                f"allowed are 1 to {C}, the channels it has"
            )

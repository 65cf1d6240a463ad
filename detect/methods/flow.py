"""Normalizing flows over feature maps of several scales: what CS-Flow and ValidFlow share.

A flow maps features x to latents z, one to one, and learns p(x) = N(z; 0, 1) |det dz/dx|: an image
whose latents are large is unlikely to be normal.
Shapes: N images; C channels, the same at every scale; scale i has maps of h_i x w_i, finest first;
D latents of an image, C times the positions of all scales.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synth.base.seeding import generator

ALPHA = 3.0
"""A coupling scales by a factor from e^-3 to e^3. Source: CS-Flow's code."""
SLOPE = 0.1
"""Of the leaky ReLUs. Source: CS-Flow's code."""
LEAST, MIN_STD = 1e-2, 1e-6
"""Of the channels' mean deviation, below which a channel passes for constant: ActNorm divides it by
that mean. One ActNorm after the other would enlarge what is next to nothing. At least MIN_STD."""


class Mapped(NamedTuple):
    """maps: [N, C, h_i, w_i] per scale; log_det: float32 [N], log |det| of the map so far."""

    maps: list[Tensor]
    log_det: Tensor


class Permutation(nn.Module):
    """A random, fixed order of the channels, another one at every scale; part of the state."""

    def __init__(self, num_scales: int, channels: int, *seeds: int) -> None:
        super().__init__()
        orders = [
            torch.randperm(channels, generator=generator(*seeds, i)) for i in range(num_scales)
        ]
        self.order: Tensor
        self.register_buffer("order", torch.stack(orders))  # [scales, C]

    def forward(self, maps: Sequence[Tensor]) -> Mapped:
        """Reorder the channels; volumes stay."""
        reordered = [x[:, order] for x, order in zip(maps, self.order, strict=True)]
        return Mapped(reordered, _zeros(maps))

    def inverse(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Put the channels back in their places."""
        return [z[:, order.argsort()] for z, order in zip(maps, self.order, strict=True)]


class ActNorm(nn.Module):
    """y = (x - mean) / std per channel and scale, learned from the first batch's statistics on.

    Source: Glow (Kingma and Dhariwal, 2018), section 3.1. `initialise` has to come before training
    and before a wrapper for several processes copies the parameters.
    """

    def __init__(self, num_scales: int, channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_scales, channels))
        self.log_std = nn.Parameter(torch.zeros(num_scales, channels))

    @torch.no_grad()
    def initialise(self, maps: Sequence[Tensor]) -> None:
        """Make each channel of these features, [N, C, h_i, w_i] per scale, of mean 0 and std 1."""
        for i, x in enumerate(maps):
            values = x.float().transpose(0, 1).flatten(1)
            self.mean[i] = values.mean(1)
            std = values.std(1, correction=0)
            usual = std.mean().clamp(min=MIN_STD)
            self.log_std[i] = torch.where(std < LEAST * usual, usual, std).log()

    def forward(self, maps: Sequence[Tensor]) -> Mapped:
        """Normalise; log |det| = - sum over scales and channels of h_i w_i log std."""
        log_det = _zeros(maps)
        normalised = []
        for x, mean, log_std in zip(maps, self.mean, self.log_std, strict=True):
            shape = (1, -1, 1, 1)
            normalised.append((x - mean.view(shape)) * (-log_std).exp().view(shape))
            log_det = log_det - x[0, 0].numel() * log_std.sum()
        return Mapped(normalised, log_det)

    def inverse(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """X = y std + mean."""
        pairs = zip(maps, self.mean, self.log_std, strict=True)
        return [y * s.exp().view(1, -1, 1, 1) + m.view(1, -1, 1, 1) for y, m, s in pairs]


class Coupling(nn.Module):
    """Two affine steps; each half of the channels, at all scales, moves the other half.

        S1, T1 = r1(a),   b' = b exp(sigma(S1)) + T1
        S2, T2 = r2(b'),  a' = a exp(sigma(S2)) + T2
    with sigma(h) = (2 alpha / pi) arctan(h / alpha). Source: CS-Flow, Eqs. 3 to 5.
    """

    def __init__(self, make_network: Callable[[], nn.Module], num_scales: int) -> None:
        """make_network: builds r: [N, C/2, h_i, w_i] per scale -> [N, C, h_i, w_i], S then T."""
        super().__init__()
        self.r1, self.r2 = make_network(), make_network()
        self.gamma = nn.Parameter(torch.zeros(2, num_scales))  # starts as the identity

    def forward(self, maps: Sequence[Tensor]) -> Mapped:
        """Transform both halves."""
        a, b = _halves(maps)
        S1, T1 = self._factors(self.r1, a, self.gamma[0])
        b = [x * s.exp() + t for x, s, t in zip(b, S1, T1, strict=True)]
        S2, T2 = self._factors(self.r2, b, self.gamma[1])
        a = [x * s.exp() + t for x, s, t in zip(a, S2, T2, strict=True)]
        log_det = torch.stack([s.flatten(1).sum(1) for s in (*S1, *S2)]).sum(0)
        return Mapped([torch.cat(pair, dim=1) for pair in zip(a, b, strict=True)], log_det)

    def inverse(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Undo the second step, whose input b' is known, then the first."""
        a, b = _halves(maps)
        S2, T2 = self._factors(self.r2, b, self.gamma[1])
        a = [(z - t) * (-s).exp() for z, s, t in zip(a, S2, T2, strict=True)]
        S1, T1 = self._factors(self.r1, a, self.gamma[0])
        b = [(z - t) * (-s).exp() for z, s, t in zip(b, S1, T1, strict=True)]
        return [torch.cat(pair, dim=1) for pair in zip(a, b, strict=True)]

    def _factors(
        self, network: nn.Module, half: list[Tensor], gamma: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """sigma(gamma S) and gamma T per scale, in the features' precision, not the network's."""
        outputs = [g * o.to(half[0].dtype) for g, o in zip(gamma, network(half), strict=True)]
        S, T = zip(*(o.chunk(2, dim=1) for o in outputs), strict=True)
        return [2 * ALPHA / math.pi * torch.atan(s / ALPHA) for s in S], list(T)


class Flow(nn.Module):
    """Permutations, normalisations and couplings, one after the other."""

    def __init__(self, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, maps: Sequence[Tensor]) -> Mapped:
        """Map features to latents; log_det is that of each image."""
        log_det = _zeros(maps)
        for step in self.steps:
            maps, step_log_det = step(maps)
            log_det = log_det + step_log_det
        return Mapped(list(maps), log_det)

    def inverse(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The features that have these latents."""
        for step in reversed(self.steps):
            maps = cast(Any, step).inverse(maps)
        return list(maps)

    @torch.no_grad()
    def initialise(self, maps: Sequence[Tensor]) -> None:
        """Set the normalisations by features of normal images, [N, C, h_i, w_i] per scale."""
        for step in self.steps:
            if isinstance(step, ActNorm):
                step.initialise(maps)
            maps = step(maps).maps


def negative_log_likelihood(mapped: Mapped) -> Tensor:
    """(|z|^2 / 2 - log |det|) / D, float32 [N], up to a constant. Source: CS-Flow, Eq. 6.

    Divided by D, so that a learning rate suits images of any size.
    """
    D = sum(z[0].numel() for z in mapped.maps)
    energy = torch.stack([z.square().flatten(1).sum(1) for z in mapped.maps]).sum(0) / 2
    return (energy - mapped.log_det) / D


# Networks inside the couplings


class CrossScale(nn.Module):
    """A convolution per scale, then sums over scales: [N, C/2, h_i, w_i] -> [N, C, h_i, w_i].

    Source: CS-Flow, figure 4 (neighbouring scales are joined); ValidFlow, figure 2 (all are).
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        kernel: int,
        num_scales: int,
        *,
        all_pairs: bool = False,
        attention: Callable[[], nn.Module] | None = None,
    ) -> None:
        """attention: builds what each scale's sum passes through at the end."""
        super().__init__()
        pad = kernel // 2
        scales = range(num_scales)
        self.inputs = nn.ModuleList(
            nn.Conv2d(channels // 2, hidden, kernel, padding=pad) for _ in scales
        )
        self.edges = nn.ModuleDict()
        for i in scales:
            for j in scales:
                if abs(i - j) <= 1 or all_pairs:  # to a coarser scale j by a stride
                    stride = 2 ** max(0, j - i)
                    self.edges[f"{i}-{j}"] = nn.Conv2d(
                        hidden, channels, kernel, stride=stride, padding=pad
                    )
        made = [nn.Identity() if attention is None else attention() for _ in scales]
        self.attention = nn.ModuleList(made)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return what each scale's S and T follow from."""
        pairs = zip(self.inputs, maps, strict=True)
        hidden = [F.leaky_relu(conv(x), SLOPE) for conv, x in pairs]
        sums: list[Tensor | None] = [None] * len(maps)
        for name, conv in self.edges.items():
            i, j = map(int, name.split("-"))
            h = hidden[i]
            if i > j:  # from a coarser scale
                h = F.interpolate(h, size=maps[j].shape[-2:], mode="bilinear", align_corners=False)
            o = conv(h)
            sums[j] = o if sums[j] is None else sums[j] + o
        return [attend(o) for attend, o in zip(self.attention, sums, strict=True)]


def _halves(maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    a, b = zip(*(x.chunk(2, dim=1) for x in maps), strict=True)
    return list(a), list(b)


def _zeros(maps: Sequence[Tensor]) -> Tensor:
    return torch.zeros(maps[0].shape[0], device=maps[0].device)

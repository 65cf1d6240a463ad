"""SDAS: strength-controlled diffusion anomaly synthesis, a DDPM chain with stronger step noise.

Source: RealNet (Zhang, Xu, Zhou, CVPR 2024), SDAS, with the sampler of its official code: 20
leading steps of a network with learned-range variance. N images, C channels, H x W pixels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synth.diffusion.ddpm import NoiseSchedule, add_noise, log_variance, posterior_mean
from synth.diffusion.prediction import Denoised

Denoiser = Callable[[Tensor, Tensor], Denoised]
"""x_t float32 [N, C, H, W] and its timesteps, int [N], to what the network makes of it."""


def sdas_step(
    schedule: NoiseSchedule, x_t: Tensor, denoised: Denoised, k: int, s: Tensor, noise: Tensor
) -> Tensor:
    """x_{t-1} ~ N(mu, (1 + s) Sigma): a reverse step of greater variance. Source: RealNet, SDAS.

    x_t, noise: [N, C, H, W]; s: [N, 1, 1, 1]. s = 0 is DDPM. Step k = 0 adds no noise.
    """
    index = torch.full((x_t.shape[0],), k, device=x_t.device)
    x_0, v = denoised.x_0.clamp(-1, 1), denoised.v
    mean = posterior_mean(schedule, x_0, x_t, index)
    if k == 0:
        return mean
    std = (0.5 * log_variance(schedule, v, index)).exp()
    return mean + (1 + s).sqrt() * std * noise


class Start(NamedTuple):
    """Where a chain starts instead of pure noise: at images, noised to position k of the schedule.

    images: float32 [N, C, H, W] in [-1, 1]. Source: SDEdit (Meng et al., ICLR 2022).
    regions: bool [N, 1, H, W]; the chain changes these pixels only, and sees the image around them
    at every step, noised as much. Source: RePaint (Lugmayr et al., CVPR 2022). None is everywhere.
    """

    images: Tensor
    k: int
    regions: Tensor | None = None


@torch.no_grad()
def sample_sdas(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    strengths: Sequence[float],
    generators: Sequence[torch.Generator],
    start: Start | None = None,
) -> Tensor:
    """One image of `shape` (C, H, W) per strength, float32 [N, C, H, W] in [-1, 1].

    Image n draws from generators[n] alone: the start, then one field per step, so that it does not
    depend on the batch. The generators' device is where the chain runs; `schedule` and `start` must
    be there too. Without a start the chain begins at its end, with pure noise.
    Raises ValueError for a negative strength.
    """
    if min(strengths) < 0:
        raise ValueError(
            f"strength: got {min(strengths)}, must not be negative (0 is the plain DDPM)"
        )
    device = generators[0].device
    s = torch.tensor(strengths, dtype=torch.float32, device=device).view(-1, 1, 1, 1)

    def draw() -> Tensor:
        return torch.stack([torch.randn(shape, generator=g, device=device) for g in generators])

    x, first = draw(), len(schedule.timesteps) - 1
    if start is not None:
        x, first = noised(schedule, start.images, x, start.k), start.k
    for k in range(first, -1, -1):
        t = schedule.timesteps[k].expand(x.shape[0])
        denoised = denoiser(x, t)
        noise = draw() if k > 0 else torch.zeros_like(x)
        x = sdas_step(schedule, x, denoised, k, s, noise)
        if start is not None and start.regions is not None:
            x = torch.where(start.regions, x, noised(schedule, start.images, noise, k - 1))
    return x.clamp(-1, 1)


def noised(schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, k: int) -> Tensor:
    """Images at position k of the schedule; before its first, at -1, as they are."""
    if k < 0:
        return x_0
    return add_noise(schedule, x_0, eps, torch.full((len(x_0),), k, device=x_0.device))

"""SDAS: strength-controlled diffusion anomaly synthesis, a DDPM chain with stronger step noise.

Source: RealNet (Zhang, Xu, Zhou, CVPR 2024), SDAS, with the sampler of its official code: 20
leading steps of a network with learned-range variance. N images, C channels, H x W pixels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from synth.ddpm import NoiseSchedule, log_variance, posterior_mean, predict_x0

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t [N, C, H, W], timestep int [N]) -> [N, 2C, H, W]: eps and v."""


def sdas_step(
    schedule: NoiseSchedule, x_t: Tensor, output: Tensor, k: int, s: Tensor, noise: Tensor
) -> Tensor:
    """x_{t-1} ~ N(mu, (1 + s) Sigma): a reverse step of greater variance. Source: RealNet, SDAS.

    x_t, noise: [N, C, H, W]; output: [N, 2C, H, W]; s: [N]. s = 0 is DDPM. Step k = 0 adds no
    noise.
    """
    index = torch.full((x_t.shape[0],), k, device=x_t.device)
    eps, v = output.chunk(2, dim=1)
    x_0 = predict_x0(schedule, x_t, eps, index).clamp(-1, 1)
    mean = posterior_mean(schedule, x_0, x_t, index)
    if k == 0:
        return mean
    std = (0.5 * log_variance(schedule, v, index)).exp()
    return mean + (1 + s).sqrt().view(-1, 1, 1, 1) * std * noise


@torch.no_grad()
def sample_sdas(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    strengths: Sequence[float],
    generators: Sequence[torch.Generator],
) -> Tensor:
    """One image of `shape` (C, H, W) per strength, float32 [N, C, H, W] in [-1, 1].

    Image n draws from generators[n] alone: the start, then one field per step, so that it does not
    depend on the batch. The generators' device is where the chain runs; `schedule` must be there
    too.
    Raises ValueError for a negative strength.
    """
    if min(strengths) < 0:
        raise ValueError(
            f"strength: got {min(strengths)}, must not be negative (0 is the plain DDPM)"
        )
    device = generators[0].device
    s = torch.tensor(strengths, dtype=torch.float32, device=device)

    def draw() -> Tensor:
        return torch.stack([torch.randn(shape, generator=g, device=device) for g in generators])

    x = draw()
    for k in range(len(schedule.timesteps) - 1, -1, -1):
        t = schedule.timesteps[k].expand(x.shape[0])
        output = denoiser(x, t).float()
        x = sdas_step(schedule, x, output, k, s, draw() if k > 0 else x)
    return x.clamp(-1, 1)

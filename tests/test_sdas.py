import math

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from synth.base.backbones import seeded_init
from synth.base.seeding import generator
from synth.diffusion.config import UNetConfig
from synth.diffusion.ddpm import NoiseSchedule, build_unet, noise_schedule
from synth.diffusion.prediction import Denoised, Prediction
from synth.diffusion.sdas import Denoiser, Start, sample_sdas, sdas_step

SHAPE = (3, 16, 16)


def reference_scheduler(num_steps: int = 20) -> DDPMScheduler:
    scheduler = DDPMScheduler(
        1000, 1e-4, 0.02, variance_type="learned_range", timestep_spacing="leading"
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    """A tiny network whose every parameter counts (half of them start at zero)."""
    config = UNetConfig(
        image_size=(16, 16),
        block_channels=(8, 16),
        attention_levels=(1,),
        head_channels=8,
        norm_groups=4,
    )
    with seeded_init(0):
        network = build_unet(config).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=g))
    return network


def read(output: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Denoised:
    return Prediction().read(output, x_t, alpha_bar)


def step(
    schedule: NoiseSchedule, x_t: Tensor, output: Tensor, k: int, s: Tensor, noise: Tensor
) -> Tensor:
    return sdas_step(schedule, x_t, read(output, x_t, schedule.alpha_bar[[k]]), k, s, noise)


def denoiser_of(unet: UNet2DModel) -> Denoiser:
    alpha_bar = noise_schedule().alpha_bar
    return lambda x, t: read(unet(x, t).sample, x, alpha_bar[t])


def generators(*indices: int) -> list[torch.Generator]:
    return [generator(7, index) for index in indices]


def test_at_strength_0_every_step_equals_diffusers() -> None:
    schedule, reference = noise_schedule(20), reference_scheduler()
    for k in range(20):
        g = torch.Generator().manual_seed(k)
        x_t, output = torch.randn(2, 3, 8, 8, generator=g), torch.randn(2, 6, 8, 8, generator=g)
        noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(99))
        ours = sdas_step(
            schedule,
            x_t,
            read(output, x_t, schedule.alpha_bar[[k]]),
            k,
            torch.zeros(2, 1, 1, 1),
            noise,
        )
        t, seeded = int(schedule.timesteps[k]), torch.Generator().manual_seed(99)
        theirs = reference.step(output, t, x_t, generator=seeded, return_dict=False)[0]
        # diffusers keeps alpha_bar in float32, we in float64 up to the constants themselves.
        torch.testing.assert_close(ours, theirs, rtol=3e-4, atol=3e-5)


def test_at_strength_0_the_whole_chain_equals_diffusers(unet: UNet2DModel) -> None:
    ours = sample_sdas(denoiser_of(unet), noise_schedule(20), SHAPE, [0.0], generators(0))
    reference, (g,) = reference_scheduler(), generators(0)
    x = torch.randn(SHAPE, generator=g)[None]
    for t in reference.timesteps:
        x = reference.step(unet(x, t).sample, int(t), x, generator=g, return_dict=False)[0]
    torch.testing.assert_close(ours, x.clamp(-1, 1), rtol=0, atol=2e-4)


def test_strength_multiplies_the_variance_of_a_step() -> None:
    schedule, num, k = noise_schedule(20), 20_000, 10
    s = torch.tensor([0.0, 0.2, 1.0]).repeat_interleave(num)
    x_t, output = torch.full((3 * num, 1, 1, 1), 0.3), torch.zeros(3 * num, 2, 1, 1)
    noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0))
    drawn = sdas_step(
        schedule, x_t, read(output, x_t, schedule.alpha_bar[[k]]), k, s.view(-1, 1, 1, 1), noise
    ).view(3, num)
    plain, *stronger = drawn.var(dim=1).tolist()
    # A sample variance of n normal draws has variance 2 sigma^4 / n: six deviations of a ratio.
    tolerance = 6 * math.sqrt(4 / num)
    assert [variance / plain for variance in stronger] == pytest.approx([1.2, 2.0], rel=tolerance)
    sigma2 = (0.5 * (schedule.log_beta[k] + schedule.log_beta_tilde[k])).exp().item()
    assert plain == pytest.approx(sigma2, rel=tolerance)
    assert drawn.mean(dim=1).tolist() == pytest.approx([drawn.mean().item()] * 3, abs=0.01)


def test_the_last_step_adds_no_noise() -> None:
    x_t, output, noise = (torch.ones(1, c, 2, 2) for c in (1, 2, 1))
    schedule, s = noise_schedule(20), torch.ones(1, 1, 1, 1)
    first = step(schedule, x_t, output, 0, s, noise)
    assert torch.equal(first, step(schedule, x_t, output, 0, s, -noise))
    assert not torch.equal(
        step(schedule, x_t, output, 1, s, noise),
        step(schedule, x_t, output, 1, s, -noise),
    )


def test_an_image_depends_on_its_own_generator_and_strength_alone(unet: UNet2DModel) -> None:
    def draw(strengths: list[float], *indices: int) -> Tensor:
        chain = noise_schedule(4)
        return sample_sdas(denoiser_of(unet), chain, SHAPE, strengths, generators(*indices))

    batch = draw([0.0, 0.1, 0.2, 0.2], 0, 1, 2, 3)
    # The noise is bit-equal; batched convolutions round differently, in units of 1e-6 a step.
    torch.testing.assert_close(draw([0.2], 2), batch[2:3], rtol=0, atol=1e-4)
    torch.testing.assert_close(draw([0.2, 0.0], 3, 0), batch[[3, 0]], rtol=0, atol=1e-4)
    assert (draw([0.1], 2) - batch[2:3]).abs().max() > 1e-2
    assert (batch[2] - batch[3]).abs().max() > 0.1
    assert batch.min() >= -1
    assert batch.max() <= 1


# Chains that start at an image


def test_a_start_that_noises_to_the_chain_s_first_noise_gives_the_whole_chain(
    unet: UNet2DModel,
) -> None:
    """x_0 is chosen such that sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps = eps at the end."""
    schedule = noise_schedule(4)
    last = len(schedule.timesteps) - 1
    alpha_bar = schedule.alpha_bar[last]
    (g,) = generators(3)
    eps = torch.randn(SHAPE, generator=g)[None]
    x_0 = eps * (1 - (1 - alpha_bar).sqrt()) / alpha_bar.sqrt()

    def draw(start: Start | None) -> Tensor:
        return sample_sdas(denoiser_of(unet), schedule, SHAPE, [0.2], generators(3), start)

    torch.testing.assert_close(draw(Start(x_0, last)), draw(None), rtol=0, atol=1e-5)
    assert (draw(Start(-x_0, last)) - draw(None)).abs().max() > 1e-3


def test_a_start_at_0_takes_one_step_and_no_noise_but_the_first() -> None:
    schedule, asked = noise_schedule(20), []
    x_0 = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    (g,) = generators(0)
    eps = torch.randn((1, 8, 8), generator=g)[None]

    def perfect(x_t: Tensor, t: Tensor) -> Denoised:
        asked.append(int(t[0]))
        output = torch.cat([eps, torch.zeros_like(eps)], dim=1)
        return read(output, x_t, schedule.alpha_bar[[0]])

    x = sample_sdas(perfect, schedule, (1, 8, 8), [5.0], generators(0), Start(x_0, 0))
    assert asked == [0]
    torch.testing.assert_close(x, x_0, rtol=0, atol=1e-5)


def gaussian_denoiser(schedule: NoiseSchedule, sigma2: float) -> Denoiser:
    """The optimal one for x_0 ~ N(0, sigma2), with the small variance."""
    stride = int(schedule.timesteps[1])

    def denoiser(x_t: Tensor, t: Tensor) -> Denoised:
        a_bar = schedule.alpha_bar[int(t[0]) // stride]
        eps = (1 - a_bar).sqrt() * x_t / (a_bar * sigma2 + 1 - a_bar)
        return read(torch.cat([eps, -torch.ones_like(eps)], dim=1), x_t, a_bar)

    return denoiser


@pytest.mark.parametrize("k", [250, 400, 600])
def test_from_an_image_a_fine_chain_draws_from_the_gaussian_posterior(k: int) -> None:
    """x_k ~ q(x_k | x_0 = m), then x_0' ~ p(x_0 | x_k): both Gaussian, so x_0' | m is known.

    With r = alpha_bar sigma2 / (alpha_bar sigma2 + 1 - alpha_bar) its mean is r m and its variance
    sigma2 (1 - r) + r^2 (1 - alpha_bar) / alpha_bar.
    """
    schedule, sigma2, m, side = noise_schedule(1000), 0.02, 0.3, 100
    x = sample_sdas(
        gaussian_denoiser(schedule, sigma2),
        schedule,
        (1, side, side),
        [0.0],
        generators(k),
        Start(torch.full((1, 1, side, side), m), k),
    )
    a_bar = schedule.alpha_bar[k].item()
    r = a_bar * sigma2 / (a_bar * sigma2 + 1 - a_bar)
    variance = sigma2 * (1 - r) + r**2 * (1 - a_bar) / a_bar
    # Six standard errors; the discrete chain's small variance costs some percent besides.
    assert x.mean().item() == pytest.approx(r * m, abs=6 * math.sqrt(variance) / side)
    assert x.var().item() == pytest.approx(variance, rel=6 * math.sqrt(2) / side + 0.05)


def test_outside_its_region_a_chain_leaves_the_image_as_it_is() -> None:
    """With a denoiser that looks at each pixel alone, the region is drawn as without one."""
    schedule = noise_schedule(20)
    x_0 = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    region = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    region[0, :, 2:5, 3:7] = True

    def draw(regions: Tensor | None) -> Tensor:
        denoiser = gaussian_denoiser(schedule, 0.02)
        start = Start(x_0, 9, regions)
        return sample_sdas(denoiser, schedule, (1, 8, 8), [0.5, 0.5], generators(0, 1), start)

    everywhere = draw(None)
    assert torch.equal(draw(region), torch.where(region, everywhere, x_0))
    assert ((everywhere - x_0)[region] != 0).all()


def test_inside_its_region_a_chain_sees_the_image_around_it_as_noisy_as_itself() -> None:
    schedule, seen = noise_schedule(20), []
    x_0 = torch.full((1, 1, 100, 100), 0.3)
    region = torch.zeros(1, 1, 100, 100, dtype=torch.bool)
    region[..., :10, :10] = True
    plain = gaussian_denoiser(schedule, 0.02)

    def denoiser(x_t: Tensor, t: Tensor) -> Denoised:
        seen.append((int(t[0]) // 50, x_t[~region]))
        return plain(x_t, t)

    sample_sdas(denoiser, schedule, (1, 100, 100), [0.5], generators(0), Start(x_0, 9, region))
    assert [k for k, _ in seen] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    for k, around in seen:
        a_bar = schedule.alpha_bar[k].item()
        assert around.mean().item() == pytest.approx(0.3 * math.sqrt(a_bar), abs=6e-2)
        assert around.var().item() == pytest.approx(1 - a_bar, rel=6 * math.sqrt(2) / 99)


def test_an_image_from_a_start_does_not_depend_on_its_batch(unet: UNet2DModel) -> None:
    x_0 = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def draw(*indices: int) -> Tensor:
        chain, start = noise_schedule(10), Start(x_0[list(indices)], 4)
        strengths = [0.1 * n for n in indices]
        return sample_sdas(denoiser_of(unet), chain, SHAPE, strengths, generators(*indices), start)

    batch = draw(0, 1, 2)
    torch.testing.assert_close(draw(2, 0), batch[[2, 0]], rtol=0, atol=1e-4)
    assert (batch[0] - batch[2]).abs().max() > 0.1


def test_a_negative_strength_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strength: got -0\.1"):
        sample_sdas(
            lambda x, t: Denoised(x, x), noise_schedule(4), SHAPE, [0.1, -0.1], generators(0, 1)
        )


@pytest.mark.parametrize(
    ("sigma2", "v", "ratios"),
    [
        (0.02, -1.0, (0.32, 0.35, 0.38)),
        (0.02, 1.0, (2.34, 2.57, 2.80)),
        (0.2, -1.0, (0.59, 0.65, 0.71)),
    ],
)
def test_gaussian_data_come_out_with_the_variance_of_the_closed_form(
    sigma2: float, v: float, ratios: tuple[float, float, float]
) -> None:
    """x_0 ~ N(0, sigma2) with its optimal denoiser; v = -1 is the small variance, 1 the large.

    The chain is linear, so that its variance follows from a recursion; the ratios to sigma2 that
    this gives by hand for s = 0, 0.1, 0.2 are the expected values. It holds while the clip of x_0
    to [-1, 1] hardly acts, which is why sigma2 = 0.2 is left out for the large variance.
    """
    schedule, side = noise_schedule(20), 300

    def denoiser(x_t: Tensor, t: Tensor) -> Denoised:
        a_bar = schedule.alpha_bar[int(t[0]) // 50]
        eps = (1 - a_bar).sqrt() * x_t / (a_bar * sigma2 + 1 - a_bar)
        return read(torch.cat([eps, torch.full_like(eps, v)], dim=1), x_t, a_bar)

    strengths = [0.0, 0.1, 0.2]
    x = sample_sdas(denoiser, schedule, (1, side, side), strengths, generators(0, 1, 2))
    measured = (x.var(dim=(1, 2, 3)) / sigma2).tolist()
    assert measured == pytest.approx(ratios, rel=0.03)

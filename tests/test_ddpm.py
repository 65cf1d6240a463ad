import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from scipy.stats import norm
from torch import Tensor

from synth.diffusion.config import PRESETS, Style, UNetConfig
from synth.diffusion.ddpm import (
    NoiseSchedule,
    add_noise,
    build_unet,
    hybrid_loss,
    log_variance,
    noise_schedule,
    posterior_mean,
    stride_loss,
    strided_schedule,
)
from synth.diffusion.prediction import Prediction

TINY = UNetConfig(
    image_size=(16, 16),
    block_channels=(8, 16),
    attention_levels=(1,),
    head_channels=8,
    norm_groups=4,
)


def reference_scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        1000, 1e-4, 0.02, variance_type="learned_range", timestep_spacing="leading"
    )


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The schedule


def test_full_schedule_equals_diffusers() -> None:
    schedule, reference = noise_schedule(), reference_scheduler()
    torch.testing.assert_close(schedule.alpha_bar, reference.alphas_cumprod, rtol=2e-5, atol=0)
    torch.testing.assert_close(schedule.log_beta.exp(), reference.betas, rtol=1e-4, atol=0)
    assert schedule.timesteps.tolist() == list(range(1000))


@pytest.mark.parametrize("num_steps", [2, 20, 250])
@pytest.mark.parametrize("v", [-1.0, 0.3, 1.0])
def test_respaced_variances_equal_diffusers(num_steps: int, v: float) -> None:
    schedule, reference = noise_schedule(num_steps), reference_scheduler()
    reference.set_timesteps(num_steps)
    assert schedule.timesteps.tolist() == reference.timesteps.flip(0).tolist()
    predicted = torch.full((num_steps, 1, 1, 1), v)
    log_var = log_variance(schedule, predicted, torch.arange(num_steps)).flatten()
    # At t = 0 diffusers clamps beta_tilde to 1e-20 where ADM takes that of the next step.
    for k in range(1, num_steps):
        t = int(schedule.timesteps[k])
        expected = reference._get_variance(t, predicted_variance=torch.tensor(v))
        assert log_var[k].item() == pytest.approx(float(expected), abs=1e-3)


def test_first_log_beta_tilde_is_the_second() -> None:
    schedule = noise_schedule(20)
    assert schedule.log_beta_tilde[0] == schedule.log_beta_tilde[1]


def test_posterior_is_bayes_rule_on_a_scalar() -> None:
    """q(x_{t-1} | x_t, x_0) from the precisions of q(x_{t-1} | x_0) and q(x_t | x_{t-1})."""
    schedule, k = noise_schedule(20), 7
    a_bar, a_bar_prev = (schedule.alpha_bar[i].double().item() for i in (k, k - 1))
    alpha, x_0, x_t = a_bar / a_bar_prev, 0.4, -0.9
    precision = 1 / (1 - a_bar_prev) + alpha / (1 - alpha)
    weighted = math.sqrt(a_bar_prev) * x_0 / (1 - a_bar_prev) + math.sqrt(alpha) * x_t / (1 - alpha)
    start, noised = (torch.full((1, 1, 1, 1), value) for value in (x_0, x_t))
    mean = posterior_mean(schedule, start, noised, torch.tensor([k]))
    assert mean.item() == pytest.approx(weighted / precision, rel=1e-4)
    assert schedule.log_beta_tilde[k].exp().item() == pytest.approx(1 / precision, rel=1e-4)


def test_predicted_x0_undoes_the_noise() -> None:
    schedule, k = noise_schedule(20), torch.tensor([0, 10, 19])
    x_0, eps = draw(3, 3, 4, 4), draw(3, 3, 4, 4, seed=1)
    x_t = add_noise(schedule, x_0, eps, k)
    torch.testing.assert_close(
        Prediction().x_0(x_t, eps, schedule.alpha_bar[k]), x_0, rtol=0, atol=2e-4
    )


def test_strided_schedule_has_the_constants_of_the_respaced_chain() -> None:
    chain, strided = noise_schedule(20), strided_schedule(50)
    for full, respaced in zip(strided, chain, strict=True):
        torch.testing.assert_close(full[50::50], respaced[1:], rtol=1e-4, atol=1e-6)
    assert all(constant.isfinite().all() for constant in strided)


@pytest.mark.parametrize("num_steps", [0, 1, 3, 600, 1001])
def test_a_chain_that_would_not_start_at_noise_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps: got {num_steps}"):
        noise_schedule(num_steps)


# The loss


def literal_vlb(schedule: NoiseSchedule, x_0: float, eps: float, t: int, out: list[float]) -> float:
    """The variational term of one scalar in bits, in float64 from the betas."""
    beta = np.linspace(1e-4, 0.02, 1000)
    a_bar = np.cumprod(1 - beta)
    a_bar_prev = np.append(1.0, a_bar[:-1])
    beta_tilde = beta * (1 - a_bar_prev) / (1 - a_bar)
    beta_tilde[0] = beta_tilde[1]
    eps_hat, v = out
    x_t = np.sqrt(a_bar[t]) * x_0 + np.sqrt(1 - a_bar[t]) * eps
    x_0_hat = (x_t - np.sqrt(1 - a_bar[t]) * eps_hat) / np.sqrt(a_bar[t])

    def mean(x: float) -> float:
        c_0 = np.sqrt(a_bar_prev[t]) * beta[t] / (1 - a_bar[t])
        return c_0 * x + np.sqrt(1 - beta[t]) * (1 - a_bar_prev[t]) / (1 - a_bar[t]) * x_t

    variance = np.exp((v + 1) / 2 * np.log(beta[t]) + (1 - v) / 2 * np.log(beta_tilde[t]))
    if t > 0:
        square = (mean(x_0) - mean(x_0_hat)) ** 2
        ratio = beta_tilde[t] / variance
        return 0.5 * (ratio - 1 - np.log(ratio) + square / variance) / np.log(2)
    model = norm(mean(x_0_hat), np.sqrt(variance))
    lower = -np.inf if x_0 < -0.999 else x_0 - 1 / 255
    upper = np.inf if x_0 > 0.999 else x_0 + 1 / 255
    return -np.log2(model.cdf(upper) - model.cdf(lower))


@pytest.mark.parametrize("t", [0, 1, 2, 60, 500, 999])
def test_vlb_equals_its_literal_definition(t: int) -> None:
    x_0 = torch.tensor([-1.0, -0.6, 0.1, 1.0]).view(1, 1, 2, 2)
    eps = draw(1, 1, 2, 2)
    output = torch.cat([eps + 0.3 * draw(1, 1, 2, 2, seed=1), draw(1, 1, 2, 2, seed=2)], dim=1)
    loss = hybrid_loss(noise_schedule(), x_0, eps, torch.tensor([t]), output)
    pairs = output.flatten(2)[0].T.double().tolist()
    scalars = zip(x_0.flatten().tolist(), eps.flatten().tolist(), pairs, strict=True)
    expected = [literal_vlb(noise_schedule(), x, e, t, out) for x, e, out in scalars]
    assert loss.vlb.item() == pytest.approx(np.mean(expected), rel=2e-3, abs=1e-6)
    assert loss.mse.item() == pytest.approx(((output[:, :1] - eps) ** 2).mean().item(), rel=1e-5)


def test_terms_are_per_sample() -> None:
    schedule, k = noise_schedule(), torch.tensor([0, 3, 700])
    x_0, eps, output = draw(3, 3, 4, 4).clamp(-1, 1), draw(3, 3, 4, 4, seed=1), draw(3, 6, 4, 4)
    together = hybrid_loss(schedule, x_0, eps, k, output)
    for n in range(3):
        one = slice(n, n + 1)
        alone = hybrid_loss(schedule, x_0[one], eps[one], k[one], output[one])
        torch.testing.assert_close(together.mse[one], alone.mse)
        torch.testing.assert_close(together.vlb[one], alone.vlb)


def test_vlb_trains_v_alone_at_every_timestep() -> None:
    schedule, k = noise_schedule(), torch.tensor([0, 1, 40, 999])
    x_0, eps = draw(4, 3, 4, 4).clamp(-1, 1), draw(4, 3, 4, 4, seed=1)
    output = (torch.cat([eps, eps], dim=1) + 0.1 * draw(4, 6, 4, 4, seed=2)).requires_grad_()
    loss = hybrid_loss(schedule, x_0, eps, k, output)
    (both,) = torch.autograd.grad((loss.mse + loss.vlb).sum(), output, retain_graph=True)
    (mse,) = torch.autograd.grad(loss.mse.sum(), output)
    assert torch.equal(both[:, :3], mse[:, :3])
    assert (mse[:, 3:] == 0).all()
    assert both[:, 3:].isfinite().all()
    assert (both[:, 3:].abs().amax(dim=(1, 2, 3)) > 0).all()


def test_stride_loss_is_the_vlb_of_the_respaced_chain_and_trains_v_alone() -> None:
    strided, chain = strided_schedule(50), noise_schedule(20)
    x_0, eps = draw(4, 3, 4, 4).clamp(-1, 1), draw(4, 3, 4, 4, seed=1)
    output = (torch.cat([eps, eps], dim=1) + 0.1 * draw(4, 6, 4, 4, seed=2)).requires_grad_()
    loss = stride_loss(strided, 50, x_0, eps, torch.tensor([0, 49, 50, 950]), output)
    expected = hybrid_loss(chain, x_0, eps, torch.tensor([1, 1, 1, 19]), output).vlb
    assert (loss[:2] == 0).all()
    torch.testing.assert_close(loss[2:], expected[2:], rtol=1e-3, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    assert (gradient[:, :3] == 0).all()
    assert gradient.isfinite().all()
    assert (gradient[2:, 3:].abs().amax(dim=(1, 2, 3)) > 0).all()


def test_a_hopeless_prediction_at_t0_has_a_finite_loss_and_gradient() -> None:
    x_0, eps = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    output = torch.tensor([1e4, -1.0]).view(1, 2, 1, 1).requires_grad_()
    loss = hybrid_loss(noise_schedule(), x_0, eps, torch.tensor([0]), output)
    (gradient,) = torch.autograd.grad(loss.vlb.sum(), output)
    assert loss.vlb.isfinite().all()
    assert gradient.isfinite().all()


# The network


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_output_is_eps_and_v_of_the_input_size(
    size: tuple[int, int], channels: Literal[1, 3]
) -> None:
    config = replace(TINY, image_size=size, num_channels=channels)
    output = build_unet(config)(draw(2, channels, *size), torch.tensor([0, 999])).sample
    assert output.shape == (2, 2 * channels, *size)
    assert (output[:, :channels] == 0).all()
    assert (output[:, channels:] == -1).all()


def test_every_attention_has_its_group_normalisation() -> None:
    names = dict(build_unet(TINY).named_parameters())
    attentions = {name.split(".to_q.")[0] for name in names if ".to_q." in name}
    assert any(name.startswith("mid_block") for name in attentions)
    assert {f"{name}.group_norm.weight" for name in attentions} <= set(names)


def test_a_trained_network_depends_on_image_and_timestep() -> None:
    unet = build_unet(TINY)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05)
    x = draw(1, 3, 16, 16)
    with torch.no_grad():
        first, later, other = (
            unet(image, torch.tensor([t])).sample for image, t in ((x, 0), (x, 900), (-x, 0))
        )
    assert not torch.allclose(first, later)
    assert not torch.allclose(first, other)


def count_parameters(unet: UNetConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_unet(unet).parameters())


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("tiny", 3_162_822),
        ("small", 3_319_942),
        ("base", 113_673_219 + 3 * (128 * 9 + 1)),  # the public network's, and three more outputs
        ("adm", 552_829_446 - 15 * 1024),
    ],
)
def test_presets_have_the_stated_number_of_parameters(preset: str, count: int) -> None:
    assert count_parameters(PRESETS[preset].unet) == count


@pytest.mark.parametrize(("categories", "count"), [(15, 552_829_446), (12, 552_826_374)])
def test_a_conditional_adm_is_realnets_network(categories: int, count: int) -> None:
    """Counts: RealNet's networks for MVTec AD and VisA."""
    assert count_parameters(replace(PRESETS["adm"].unet, num_categories=categories)) == count


def test_a_conditional_network_hears_the_category() -> None:
    unet = build_unet(replace(TINY, num_categories=3))
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05)
        x, t = draw(1, 3, 16, 16), torch.tensor([500])
        outputs = [unet(x, t, class_labels=torch.tensor([label])).sample for label in range(3)]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])


@pytest.mark.parametrize("style", ["adm", "ddpm", "diffusers"])
def test_every_style_draws_images_that_are_not_square(style: Style) -> None:
    unet = build_unet(replace(TINY, image_size=(8, 24), style=style))
    assert unet(draw(1, 3, 8, 24), torch.tensor([1])).sample.shape == (1, 6, 8, 24)

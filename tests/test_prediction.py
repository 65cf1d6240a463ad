import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.fft import dctn
from torch import Tensor

from synth.base.errors import UserError
from synth.base.seeding import generator
from synth.diffusion.config import UNetConfig
from synth.diffusion.ddpm import add_noise, build_scheduler, hybrid_loss, noise_schedule
from synth.diffusion.prediction import Denoised, Prediction, implied_eps
from synth.diffusion.sdas import Denoiser, sample_sdas
from synth.diffusion.spectrum import (
    NUM_OF_MEAN,
    Spectrum,
    bands,
    frozen,
    measure_spectrum,
    to_frequencies,
    to_pixels,
)
from synth.making.train import pixel_statistics

EDM = Prediction("edm", mu=-0.2, sigma_data=0.3)


def falling(height: int, width: int, num_channels: int) -> Spectrum:
    """A spectrum that falls from 2 by frequency, faster over columns, less strong in colour.

    Its mean image rises from left to right.
    """
    rows, columns = (np.arange(1 + bands(side)[-1]) for side in (height, width))
    table = 2 * 2.0 ** (-rows[:, None] / 8 - columns / 4)
    mean = np.zeros((num_channels, min(height, NUM_OF_MEAN), min(width, NUM_OF_MEAN)))
    mean[0, 0, :2] = -0.2, -0.4
    std = [(table / (1 + c)).tolist() for c in range(num_channels)]
    return Spectrum(frozen(mean.tolist()), frozen(std))


WIENER = Prediction("wiener", spectrum=falling(4, 4, 3))
KINDS = [Prediction("epsilon"), Prediction("v"), EDM, WIENER]
kinds = pytest.mark.parametrize("prediction", KINDS, ids=[kind.kind for kind in KINDS])


def draws(num: int, side: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x_0 = torch.rand(num, 3, side, side, generator=g) * 2 - 1
    eps = torch.randn(num, 3, side, side, generator=g)
    return x_0, eps, torch.linspace(10, 999, num).long()


@kinds
def test_the_target_gives_the_image_and_its_noise_back(prediction: Prediction) -> None:
    schedule, (x_0, eps, k) = noise_schedule(), draws(5)
    x_t, alpha_bar = add_noise(schedule, x_0, eps, k), schedule.alpha_bar[k]
    target = prediction.target(x_0, eps, x_t, alpha_bar)
    x_0_hat = prediction.x_0(x_t, target, alpha_bar)
    torch.testing.assert_close(x_0_hat, x_0, rtol=0, atol=2e-4)
    torch.testing.assert_close(implied_eps(x_t, x_0_hat, alpha_bar), eps, rtol=0, atol=1e-3)


def test_v_is_what_diffusers_calls_so() -> None:
    schedule, (x_0, eps, k) = noise_schedule(), draws(5)
    x_t = add_noise(schedule, x_0, eps, k)
    target = Prediction("v").target(x_0, eps, x_t, schedule.alpha_bar[k])
    torch.testing.assert_close(target, build_scheduler("v").get_velocity(x_0, eps, k))


def test_edm_with_unit_data_is_v_with_the_opposite_sign() -> None:
    schedule, (x_0, eps, k) = noise_schedule(), draws(5)
    x_t, alpha_bar = add_noise(schedule, x_0, eps, k), schedule.alpha_bar[k]
    edm, v = Prediction("edm", 0.0, 1.0), Prediction("v")
    torch.testing.assert_close(edm.input(x_t, alpha_bar), x_t)
    F = torch.randn(x_t.shape, generator=generator(1))
    torch.testing.assert_close(edm.x_0(x_t, -F, alpha_bar), v.x_0(x_t, F, alpha_bar))
    theirs = -v.target(x_0, eps, x_t, alpha_bar)
    torch.testing.assert_close(edm.target(x_0, eps, x_t, alpha_bar), theirs, rtol=0, atol=2e-4)


def test_edm_is_the_preconditioning_of_its_paper() -> None:
    """Karras et al., 2022, Table 1, in its own variables y and sigma."""
    schedule, (x_0, eps, k) = noise_schedule(), draws(5)
    x_t, a = add_noise(schedule, x_0, eps, k), schedule.alpha_bar[k].view(-1, 1, 1, 1)
    y, sigma, s_d = x_t / a.sqrt(), ((1 - a) / a).sqrt(), EDM.sigma_data
    c_skip, c_out = s_d**2 / (sigma**2 + s_d**2), sigma * s_d / (sigma**2 + s_d**2).sqrt()
    c_in = 1 / (sigma**2 + s_d**2).sqrt()
    F = torch.randn(x_t.shape, generator=generator(1))
    alpha_bar = schedule.alpha_bar[k]
    torch.testing.assert_close(EDM.input(x_t, alpha_bar), c_in * (y - EDM.mu))
    expected = EDM.mu + c_skip * (y - EDM.mu) + c_out * F
    torch.testing.assert_close(EDM.x_0(x_t, F, alpha_bar), expected, rtol=1e-4, atol=1e-4)
    # A weight of 1 on F is EDM's weight lambda(sigma) = 1 / c_out^2 on the image.
    mse = hybrid_loss(schedule, x_0, eps, k, torch.cat([F, F], dim=1), EDM).mse
    weighted = ((expected - x_0) / c_out).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(mse, weighted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("t", [0, 100, 500, 999])
def test_the_input_of_edm_has_unit_variance(t: int) -> None:
    g = torch.Generator().manual_seed(t)
    x_0 = EDM.mu + EDM.sigma_data * torch.randn(1, 3, 200, 200, generator=g)
    schedule, k = noise_schedule(), torch.tensor([t])
    x_t = add_noise(schedule, x_0, torch.randn(x_0.shape, generator=g), k)
    x = EDM.input(x_t, schedule.alpha_bar[k])
    assert x.mean().item() == pytest.approx(0, abs=0.02)
    assert x.var().item() == pytest.approx(1, rel=0.03)


def test_a_flat_spectrum_is_edm() -> None:
    schedule, (x_0, eps, k) = noise_schedule(), draws(5)
    x_t, alpha_bar = add_noise(schedule, x_0, eps, k), schedule.alpha_bar[k]
    table, zeros = ((EDM.sigma_data,) * 4,) * 4, ((0.0,) * 4,) * 4
    mean = (((EDM.mu * math.sqrt(3 * 4 * 4), 0.0, 0.0, 0.0), *zeros[1:]), zeros, zeros)
    flat = Prediction("wiener", spectrum=Spectrum(mean, (table,) * 3))
    F = torch.randn(x_t.shape, generator=generator(1))
    torch.testing.assert_close(flat.input(x_t, alpha_bar), EDM.input(x_t, alpha_bar))
    ours, theirs = flat.x_0(x_t, F, alpha_bar), EDM.x_0(x_t, F, alpha_bar)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    ours, theirs = (one.target(x_0, eps, x_t, alpha_bar) for one in (flat, EDM))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def transformed(x: Tensor) -> NDArray[np.float64]:
    """The cosine transform of images, [N, C, H, W] or [N, H, W, C], by scipy."""
    return np.asarray(dctn(x.numpy(), axes=(1, 2, 3), norm="ortho"))


def test_wiener_is_edm_for_every_frequency() -> None:
    """In the transform of scipy, coefficient by coefficient; the loss has EDM's weights there."""
    schedule, (x_0, eps, k) = noise_schedule(), draws(5)
    x_t, alpha_bar = add_noise(schedule, x_0, eps, k), schedule.alpha_bar[k]
    F = torch.randn(x_t.shape, generator=generator(1))
    X_0, X_t, coefficients = (transformed(one) for one in (x_0, x_t, F))
    assert WIENER.spectrum is not None
    mean, std = np.asarray(WIENER.spectrum.mean), WIENER.spectrum.std
    expected, weights = np.empty_like(X_0), np.empty_like(X_0)
    for n, c, row, column in np.ndindex(X_0.shape):
        a, sigma = alpha_bar[n].item(), std[c][bands(4)[row]][bands(4)[column]]
        variance = 1 - a + a * sigma**2
        c_skip, c_out = a**0.5 * sigma**2 / variance, (1 - a) ** 0.5 * sigma / variance**0.5
        at = (n, c, row, column)
        r = X_t[at] - a**0.5 * mean[at[1:]]
        expected[at] = mean[at[1:]] + c_skip * r + c_out * coefficients[at]
        weights[at] = 1 / c_out**2
    ours = to_frequencies(WIENER.x_0(x_t, F, alpha_bar))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    mse = hybrid_loss(schedule, x_0, eps, k, torch.cat([F, F], dim=1), WIENER).mse
    weighted = (weights * (expected - X_0) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(mse, weighted, rtol=1e-3)


def test_no_answer_at_all_is_the_chain_of_a_gaussian_of_this_spectrum() -> None:
    """Each frequency's variance at s = 0 and 0.2, from the linear recursion by hand."""
    side, num_steps, strengths = 16, 20, (0.0, 0.2)
    wide = falling(side, side, 1)
    spectrum = Spectrum(wide.mean, frozen((0.1 * np.asarray(wide.std)).tolist()))
    prediction = Prediction("wiener", spectrum=spectrum)
    schedule, all_alpha_bar = noise_schedule(num_steps), noise_schedule().alpha_bar

    def denoiser(x_t: Tensor, t: Tensor) -> Denoised:
        output = torch.cat([torch.zeros_like(x_t), -torch.ones_like(x_t)], dim=1)
        return prediction.read(output, x_t, all_alpha_bar[t])

    each = 300
    x = sample_sdas(
        denoiser,
        schedule,
        (1, side, side),
        [s for s in strengths for _ in range(each)],
        [generator(7, index) for index in range(each * len(strengths))],
    )
    measured = to_frequencies(x) - torch.tensor(spectrum.mean)
    measured = measured.square().view(len(strengths), each, side, side).mean(dim=1)
    sigma2 = np.asarray(spectrum.std)[0][bands(side)[:, None], bands(side)] ** 2
    for strength, power in zip(strengths, measured, strict=True):
        variance = np.ones_like(sigma2)
        for i in range(num_steps - 1, -1, -1):
            a = schedule.alpha_bar[i].item()
            gain = a**0.5 * sigma2 / (1 - a + a * sigma2)
            carried = schedule.mean_x0[i].item() * gain + schedule.mean_xt[i].item()
            added = (1 + strength) * schedule.log_beta_tilde[i].exp().item() if i else 0
            variance = carried**2 * variance + added
        ratio = power.numpy() / variance
        assert np.abs(ratio - 1).max() < 5 * (2 / each) ** 0.5
        assert ratio.mean() == pytest.approx(1, abs=5 * (2 / each) ** 0.5 / side)


def perfect(prediction: Prediction, mu: float, sigma2: float) -> Denoiser:
    """Answers as the optimal network for x_0 ~ N(mu, sigma2) of this kind; the small variance."""
    all_alpha_bar = noise_schedule().alpha_bar

    def denoiser(x_t: Tensor, t: Tensor) -> Denoised:
        alpha_bar = all_alpha_bar[t]
        a = alpha_bar.view(-1, 1, 1, 1)
        gain = a.sqrt() * sigma2 / (a * sigma2 + 1 - a)
        x_0 = mu + gain * (x_t - a.sqrt() * mu)
        eps = implied_eps(x_t, x_0, alpha_bar)
        F = prediction.target(x_0, eps, x_t, alpha_bar)
        return prediction.read(torch.cat([F, -torch.ones_like(F)], dim=1), x_t, alpha_bar)

    return denoiser


def of_size(prediction: Prediction, num_channels: int, side: int) -> Prediction:
    """The same kind for images of another shape."""
    if prediction.spectrum is None:
        return prediction
    return prediction._replace(spectrum=falling(side, side, num_channels))


@kinds
def test_a_perfect_network_of_any_kind_gives_the_chain_of_the_closed_form(
    prediction: Prediction,
) -> None:
    """Ratios of the variance to sigma2 for s = 0, 0.1, 0.2, from the linear recursion by hand."""
    sigma2, side, mu = 0.02, 200, 0.1
    x = sample_sdas(
        perfect(of_size(prediction, 1, side), mu, sigma2),
        noise_schedule(20),
        (1, side, side),
        [0.0, 0.1, 0.2],
        [generator(7, index) for index in range(3)],
    )
    assert (x.var(dim=(1, 2, 3)) / sigma2).tolist() == pytest.approx([0.32, 0.35, 0.38], rel=0.04)
    assert x.mean(dim=(1, 2, 3)).tolist() == pytest.approx([mu] * 3, abs=0.01)


@kinds
def test_excess_noise_stays_out_of_the_image_where_nothing_divides_by_sqrt_alpha_bar(
    prediction: Prediction,
) -> None:
    """A network that answers as if x_t had the noise that t says, given half as much again."""
    schedule, k, prediction = noise_schedule(), torch.tensor([800]), of_size(prediction, 1, 100)
    g = torch.Generator().manual_seed(0)
    x_0 = EDM.mu + EDM.sigma_data * torch.randn(1, 1, 100, 100, generator=g)
    eps = torch.randn(x_0.shape, generator=g)
    alpha_bar = schedule.alpha_bar[k]
    F = prediction.target(x_0, eps, add_noise(schedule, x_0, eps, k), alpha_bar)
    x_t = add_noise(schedule, x_0, math.sqrt(1.5) * eps, k)
    error = (prediction.x_0(x_t, F, alpha_bar) - x_0).std().item()
    assert error > 2 if prediction.kind == "epsilon" else error < 0.1


def test_statistics_of_the_training_images() -> None:
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (3, 5, 7, 3), np.uint8),
        rng.integers(0, 9, (8, 5, 7, 3), np.uint8),
    ]
    mu, sigma_data = pixel_statistics(images)
    units = [part / 127.5 - 1 for part in images]
    assert mu == pytest.approx(np.mean([part.mean() for part in units]), abs=1e-6)
    second = np.mean([(part**2).mean() for part in units])
    assert sigma_data == pytest.approx(math.sqrt(second - mu**2), abs=1e-5)
    with pytest.raises(UserError, match="all pixels of all images have one value"):
        pixel_statistics([np.full((2, 4, 4, 3), 7, np.uint8)])


def shown(images: NDArray[np.uint8], up: bool, left: bool, turned: bool) -> NDArray[np.uint8]:
    """All ways in which the images, [N, H, W, 3], may be shown."""
    for axis, mirrored in ((1, up or turned), (2, left or turned)):
        images = np.concatenate([images, np.flip(images, axis)]) if mirrored else images
    return np.concatenate([images, images.swapaxes(1, 2)]) if turned else images


@pytest.mark.parametrize(
    ("shape", "up", "left", "turned"),
    [
        ((6, 10), False, False, False),
        ((20, 36), True, False, False),
        ((6, 10), False, True, False),
        ((8, 8), False, False, True),
    ],
)
def test_the_spectrum_is_what_images_differ_from_their_mean_by(
    shape: tuple[int, int], up: bool, left: bool, turned: bool
) -> None:
    rng = np.random.default_rng(0)
    coarse = (
        rng.uniform(80, 180, (2, *shape, 3)).cumsum(axis=2) / (1 + np.arange(shape[1]))[:, None]
    )
    images = [
        np.clip(rng.normal(one, 20, (num, *shape, 3)), 0, 255).astype(np.uint8)
        for one, num in zip(coarse, (30, 80), strict=True)
    ]
    spectrum = measure_spectrum(images, 3, mirrored=(up, left), turned=turned)
    mean = np.zeros((3, *shape))
    kept = np.asarray(spectrum.mean)
    mean[:, : kept.shape[1], : kept.shape[2]] = kept
    power = np.zeros_like(mean)
    for part in images:
        x = torch.from_numpy(shown(part, up, left, turned) / 127.5 - 1).permute(0, 3, 1, 2)
        power += ((transformed(x) - mean) ** 2).mean(axis=0) / 2
    for c, rows, columns in [(0, 0, 0), (1, 2, 0), (2, 4, 4)]:
        here = np.ix_(bands(shape[0]) == rows, bands(shape[1]) == columns)
        expected = math.sqrt(power[c][here].mean())
        assert spectrum.std[c][rows][columns] == pytest.approx(expected, abs=2e-6)
    picture = to_pixels(torch.from_numpy(mean)[None].float())
    if up:
        torch.testing.assert_close(picture, picture.flip(2), rtol=0, atol=1e-5)
    if left or turned:
        torch.testing.assert_close(picture, picture.flip(3), rtol=0, atol=1e-5)
    if turned:
        torch.testing.assert_close(picture, picture.mT, rtol=0, atol=1e-5)


def test_the_mean_image_is_what_chance_does_not_explain() -> None:
    """An object stays, at all frequencies that are kept; the mean of noise is taken for nothing."""
    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:48, :48] / 48
    object_ = 60 + 120 * ((rows - 0.5) ** 2 + (columns - 0.4) ** 2 < 0.1)[..., None]
    noise = rng.normal(0, 25, (200, 48, 48, 3))
    for picture, share in ((object_, 0.97), (np.full((48, 48, 1), 100), 1.0)):
        images = np.clip(picture + noise, 0, 255).astype(np.uint8)
        spectrum, coarse = measure_spectrum([images], 3), np.s_[:NUM_OF_MEAN, :NUM_OF_MEAN]
        truth = transformed(torch.from_numpy(picture / 127.5 - 1).expand(1, 48, 48, 3))[0]
        kept = np.moveaxis(np.asarray(spectrum.mean), 0, 2)
        error = (truth**2).sum() - (truth[coarse] ** 2).sum() + ((truth[coarse] - kept) ** 2).sum()
        assert 1 - error / (truth**2).sum() > share - 0.01
        plain = np.mean(transformed(torch.from_numpy(images / 127.5 - 1)), axis=0)[coarse]
        assert ((kept - truth[coarse]) ** 2).sum() < ((plain - truth[coarse]) ** 2).sum()


def test_one_image_is_no_mean() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    spectrum = measure_spectrum([image], 3)
    assert np.isfinite(spectrum.std).all()
    assert np.abs(spectrum.mean).max() == 0


def test_grey_images_have_no_spectrum_of_colour() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8).repeat(3, axis=3)
    brightness, *colour = measure_spectrum([grey], 3).std
    assert np.min(brightness) > 0.1
    assert np.abs(colour).max() < 1e-6


def test_an_edm_network_without_its_statistics_is_refused() -> None:
    with pytest.raises(UserError, match=r"got edm with mu None.* edm needs the mean"):
        _ = UNetConfig(prediction="edm").predicted
    with pytest.raises(UserError, match=r"got .x0., allowed are epsilon, v, edm, wiener"):
        UNetConfig(prediction="x0")  # pyright: ignore[reportArgumentType]
    known = falling(64, 64, 3)
    with pytest.raises(UserError, match=r"got wiener .* and no spectrum; .* wiener their spectrum"):
        _ = UNetConfig(prediction="wiener").predicted
    with pytest.raises(UserError, match=r"got edm .* and a spectrum"):
        _ = UNetConfig(prediction="edm", mu=0.0, sigma_data=0.3, spectrum=known).predicted
    with pytest.raises(UserError, match="spectrum: std must be 3 tables of 10 x 12 values"):
        _ = UNetConfig(prediction="wiener", image_size=(32, 64), spectrum=known).predicted
    odd = replace(known, std=(((math.nan,) * 12,) * 12,) * 3)
    with pytest.raises(UserError, match="spectrum: std has values that are not finite"):
        _ = UNetConfig(prediction="wiener", spectrum=odd).predicted
    with pytest.raises(UserError, match="sigma_data: got 0"):
        UNetConfig(prediction="edm", mu=0.0, sigma_data=0)

"""What the network predicts, and how the clean image follows from it.

The network maps a scaled x_t to F. With r = x_t - sqrt(alpha_bar) mu and
D_t = 1 - alpha_bar + alpha_bar sigma_data^2, the variance of x_t, the kinds are

    kind      input            F                              x_0_hat
    epsilon   x_t              eps                            (x_t - sqrt(1 - alpha_bar) F) / sqrt(alpha_bar)
    v         x_t              sqrt(alpha_bar) eps            sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) F
                               - sqrt(1 - alpha_bar) x_0
    edm       r / sqrt(D_t)    (x_0 - mu - c_skip r) / c_out  mu + c_skip r + c_out F
    wiener    r / sqrt(D_t)    the same for every frequency   the same for every frequency

with c_skip = sqrt(alpha_bar) sigma_data^2 / D_t and c_out = sqrt(1 - alpha_bar) sigma_data /
sqrt(D_t). These are EDM's c_skip and c_out (Karras et al., 2022, Table 1) for
y = x_t / sqrt(alpha_bar) and sigma^2 = (1 - alpha_bar) / alpha_bar. With sigma_data = 1 and mu = 0,
edm is v with the opposite sign. v: Salimans and Ho, 2022.

wiener is ours. mu is the mean image, and each coefficient of an image's discrete cosine transform
takes the place of a pixel, with a sigma_data of its frequency in c_skip and c_out. F = 0 is then
the Wiener filter of x_t, the best linear guess at an image of this mean and spectrum: it keeps
what is the same in all images and the brightness, and takes the grain out; no error of F adds more
at a frequency than the images have there. With a flat mean and spectrum it is edm.

Only epsilon divides by sqrt(alpha_bar). SDAS feeds the network more noise than t says, the answer
of an epsilon network falls short of it, and the division amplifies what remains into grain.

Shapes: x_t, x_0, eps and F are float32 [N, C, H, W]; alpha_bar is float32 [N].
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

from synth.diffusion.spectrum import (
    Spectrum,
    deviations,
    mean_image,
    to_frequencies,
    to_pixels,
)

if TYPE_CHECKING:  # options name the kinds, and torch would hold up `--help`
    from torch import Tensor

PredictionKind = Literal["epsilon", "v", "edm", "wiener"]
STATISTICAL: tuple[PredictionKind, ...] = ("edm", "wiener")
"""Kinds that know mean and deviation of the training images; diffusers' schedulers know neither."""


class Denoised(NamedTuple):
    """x_0: the image that a network sees in x_t, not clipped. v: of its variance, as the output."""

    x_0: Tensor
    v: Tensor


class Prediction(NamedTuple):
    """The kind, and the training images' statistics, in [-1, 1] units.

    mu and sigma_data, the mean and standard deviation of their pixels, are for edm; the spectrum
    is for wiener, which has a mu for each pixel and a sigma_data for each frequency.
    """

    kind: PredictionKind = "epsilon"
    mu: float = 0.0
    sigma_data: float = 1.0
    spectrum: Spectrum | None = None

    def input(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """What the network is given; of unit variance at every t for edm and wiener."""
        if self.kind not in STATISTICAL:
            return x_t
        a = _column(alpha_bar)
        mu, sigma = self._statistics(x_t)
        variance = _variance(a, sigma).mean(dim=(1, 2, 3), keepdim=True)  # of all pixels
        return (x_t - a.sqrt() * mu) / variance.sqrt()

    def x_0(self, x_t: Tensor, F: Tensor, alpha_bar: Tensor) -> Tensor:
        """The clean image that the network's answer F implies, not clipped."""
        a = _column(alpha_bar)
        if self.kind == "epsilon":
            return (x_t - (1 - a).sqrt() * F) / a.sqrt()
        if self.kind == "v":
            return a.sqrt() * x_t - (1 - a).sqrt() * F
        mu, sigma = self._statistics(x_t)
        c_out = _c_out(a, sigma)
        return mu + self._skipped(x_t, a) + self._each(F, lambda f: c_out * f)

    def read(self, output: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Denoised:
        """Read the network's output, F and v, [N, 2C, H, W], in float32."""
        F, v = output.float().chunk(2, dim=1)
        return Denoised(self.x_0(x_t, F, alpha_bar), v)

    def target(self, x_0: Tensor, eps: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """The F that gives x_0 back."""
        a = _column(alpha_bar)
        if self.kind == "epsilon":
            return eps
        if self.kind == "v":
            return a.sqrt() * eps - (1 - a).sqrt() * x_0
        mu, sigma = self._statistics(x_t)
        c_out = _c_out(a, sigma)
        return self._each(x_0 - mu - self._skipped(x_t, a), lambda f: f / c_out)

    def _each(self, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Change each pixel or, for wiener, the coefficient of each frequency."""
        return to_pixels(change(to_frequencies(x))) if self.kind == "wiener" else change(x)

    def _statistics(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Mu and sigma_data; for wiener of each pixel and of each frequency, both [C, H, W]."""
        if self.spectrum is None:
            return self.mu, self.sigma_data
        where = (*x.shape[2:], x.device)
        return mean_image(self.spectrum.mean, *where), deviations(self.spectrum.std, *where)

    def _skipped(self, x_t: Tensor, a: Tensor) -> Tensor:
        mu, sigma = self._statistics(x_t)
        c_skip = a.sqrt() * sigma**2 / _variance(a, sigma)
        return self._each(x_t - a.sqrt() * mu, lambda r: c_skip * r)


def _c_out(a: Tensor, sigma: Tensor | float) -> Tensor:
    return (1 - a).sqrt() * sigma / _variance(a, sigma).sqrt()


def _variance(a: Tensor, sigma: Tensor | float) -> Tensor:
    return 1 - a + a * sigma**2


def implied_eps(x_t: Tensor, x_0: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise that makes x_t of x_0, DDPM Eq. 4."""
    a = _column(alpha_bar)
    return (x_t - a.sqrt() * x_0) / (1 - a).sqrt()


def _column(alpha_bar: Tensor) -> Tensor:
    return alpha_bar.view(-1, 1, 1, 1)

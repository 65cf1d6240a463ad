"""What the network predicts, and how the clean image follows from it.

The network maps a scaled x_t to F. With D_t = 1 - alpha_bar + alpha_bar sigma_data^2, the variance
of x_t, the three kinds are

    kind      input                                F                        x_0_hat
    epsilon   x_t                                  eps                      (x_t - sqrt(1 - alpha_bar) F) / sqrt(alpha_bar)
    v         x_t                                  sqrt(alpha_bar) eps      sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) F
                                                   - sqrt(1 - alpha_bar) x_0
    edm       (x_t - sqrt(alpha_bar) mu)           (x_0 - mu - c_skip r)    mu + c_skip r + c_out F
              / sqrt(D_t)                          / c_out

with r = x_t - sqrt(alpha_bar) mu, c_skip = sqrt(alpha_bar) sigma_data^2 / D_t and
c_out = sqrt(1 - alpha_bar) sigma_data / sqrt(D_t). These are EDM's c_skip and c_out (Karras et al.,
2022, Table 1) for y = x_t / sqrt(alpha_bar) and sigma^2 = (1 - alpha_bar) / alpha_bar. With
sigma_data = 1 and mu = 0, edm is v with the opposite sign. v: Salimans and Ho, 2022.

Only epsilon divides by sqrt(alpha_bar). SDAS feeds the network more noise than t says, the answer
of an epsilon network falls short of it, and the division amplifies what remains into grain.

Shapes: x_t, x_0, eps and F are float32 [N, C, H, W]; alpha_bar is float32 [N].
"""  # noqa: E501

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # options name the kinds, and torch would hold up `--help`
    from torch import Tensor

PredictionKind = Literal["epsilon", "v", "edm"]


class Denoised(NamedTuple):
    """x_0: the image that a network sees in x_t, not clipped. v: of its variance, as the output."""

    x_0: Tensor
    v: Tensor


class Prediction(NamedTuple):
    """The kind, and for edm the mean mu and standard deviation of the training images' pixels.

    mu and sigma_data are in [-1, 1] units.
    """

    kind: PredictionKind = "epsilon"
    mu: float = 0.0
    sigma_data: float = 1.0

    def input(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """What the network is given; of unit variance at every t for edm."""
        if self.kind != "edm":
            return x_t
        a = _column(alpha_bar)
        return (x_t - a.sqrt() * self.mu) / self._variance(a).sqrt()

    def x_0(self, x_t: Tensor, F: Tensor, alpha_bar: Tensor) -> Tensor:
        """The clean image that the network's answer F implies, not clipped."""
        a = _column(alpha_bar)
        if self.kind == "epsilon":
            return (x_t - (1 - a).sqrt() * F) / a.sqrt()
        if self.kind == "v":
            return a.sqrt() * x_t - (1 - a).sqrt() * F
        return self.mu + self._skipped(x_t, a) + self._c_out(a) * F

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
        return (x_0 - self.mu - self._skipped(x_t, a)) / self._c_out(a)

    def _variance(self, a: Tensor) -> Tensor:
        return 1 - a + a * self.sigma_data**2

    def _skipped(self, x_t: Tensor, a: Tensor) -> Tensor:
        c_skip = a.sqrt() * self.sigma_data**2 / self._variance(a)
        return c_skip * (x_t - a.sqrt() * self.mu)

    def _c_out(self, a: Tensor) -> Tensor:
        return (1 - a).sqrt() * self.sigma_data / self._variance(a).sqrt()


def implied_eps(x_t: Tensor, x_0: Tensor, alpha_bar: Tensor) -> Tensor:
    """The noise that makes x_t of x_0, DDPM Eq. 4."""
    a = _column(alpha_bar)
    return (x_t - a.sqrt() * x_0) / (1 - a).sqrt()


def _column(alpha_bar: Tensor) -> Tensor:
    return alpha_bar.view(-1, 1, 1, 1)

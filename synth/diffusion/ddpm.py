"""The diffusion model: its U-Net, its noise schedule, and the hybrid loss that learns the variance.

Letters as in the papers: T timesteps, beta_t the noise added at t, alpha_bar_t = prod(1 - beta),
x_0 an image in [-1, 1], x_t its noised version, eps the noise, Sigma the reverse step's variance.
DDPM: Ho, Jain, Abbeel, 2020. Improved DDPM: Nichol, Dhariwal, 2021.
"""

import math
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from synth.diffusion.config import NUM_TRAIN_TIMESTEPS, Style, UNetConfig
from synth.diffusion.prediction import Prediction, PredictionKind

EPSILON = Prediction()

STYLES: dict[Style, dict[str, Any]] = {
    # ADM: residual blocks resample, and the timestep scales and shifts what is normalised.
    "adm": {
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "norm_eps": 1e-5,
    },
    # DDPM as in Ho et al.'s code: convolutions resample, the timestep is added.
    "ddpm": {
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    # The same as diffusers builds it by default, and its training example too.
    "diffusers": {},
}
"""What the styles pass to UNet2DModel besides sizes."""


def unet_arguments(config: UNetConfig) -> dict[str, Any]:
    """The arguments of diffusers' UNet2DModel for this network, with F and v as output."""
    levels = len(config.block_channels)
    down = ["AttnDownBlock2D" if n in config.attention_levels else "" for n in range(levels)]
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    if config.style != "adm":
        plain = ("DownBlock2D", "UpBlock2D")
    arguments = {
        "sample_size": config.image_size,
        "in_channels": config.num_channels,
        "out_channels": 2 * config.num_channels,
        "layers_per_block": config.layers_per_block,
        "block_out_channels": config.block_channels,
        "down_block_types": tuple(kind or plain[0] for kind in down),
        "up_block_types": tuple("AttnUpBlock2D" if kind else plain[1] for kind in down[::-1]),
        "attention_head_dim": config.head_channels,
        "norm_num_groups": config.norm_groups,
        "num_class_embeds": config.num_categories,
        **STYLES[config.style],
    }
    if config.style == "adm":
        # Without it "scale_shift" silently drops the group normalisation of the middle attention.
        arguments["attn_norm_num_groups"] = config.norm_groups
    return arguments


def build_unet(config: UNetConfig) -> UNet2DModel:
    """The U-Net: float32 [N, C, H, W], int timesteps [N] -> [N, 2C, H, W].

    The outputs are F, from which `Prediction.x_0` follows, and v, from which the variance does. A
    conditional network also takes class_labels, int [N]. The last convolutions of the residual
    branches and F start at zero (the initialisation of DDPM and ADM), which diffusers leaves at
    random. v starts at -1, the variance of a denoiser without error.
    """
    unet = UNet2DModel(**unet_arguments(config))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".conv2." in name or ".to_out.0." in name or name.startswith("conv_out."):
                parameter.zero_()
        assert unet.conv_out.bias is not None
        unet.conv_out.bias[config.num_channels :] = -1
    return unet


def build_scheduler(kind: PredictionKind = "epsilon") -> DDPMScheduler:
    """Diffusers' description of the same process, stored beside the U-Net for its pipelines.

    For edm and wiener, which diffusers' schedulers do not know, it is that of `model.EpsilonUNet`.
    """
    return DDPMScheduler(
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        variance_type="learned_range",
        clip_sample=True,
        prediction_type="v_prediction" if kind == "v" else "epsilon",
        timestep_spacing="leading",
        steps_offset=0,
    )


class NoiseSchedule(NamedTuple):
    """Constants of a (possibly respaced) chain, float32 [K]; entry k belongs to timesteps[k].

    mean_x0, mean_xt: coefficients of the posterior mean, DDPM Eq. 7.
    log_beta, log_beta_tilde: bounds of log Sigma, Improved DDPM Eq. 15; the first log_beta_tilde,
    which is -inf, is replaced by the second, as ADM does.
    """

    timesteps: Tensor
    alpha_bar: Tensor
    mean_x0: Tensor
    mean_xt: Tensor
    log_beta: Tensor
    log_beta_tilde: Tensor

    def to(self, device: torch.device) -> "NoiseSchedule":
        """The same constants on `device`."""
        return NoiseSchedule(*(constant.to(device) for constant in self))


def noise_schedule(num_steps: int = NUM_TRAIN_TIMESTEPS) -> NoiseSchedule:
    """The linear schedule 1e-4..0.02 over T = 1000, respaced to `num_steps` "leading" steps.

    The steps are 0, T/K, 2T/K, ... Raises ValueError unless K divides T: the chain would start well
    below T, from an image that is not noise yet.
    """
    T = NUM_TRAIN_TIMESTEPS
    if num_steps < 2 or T % num_steps:
        raise ValueError(f"num_steps: got {num_steps}, allowed are the divisors of {T} from 2 on")
    timesteps = torch.arange(num_steps) * (T // num_steps)
    alpha_bar = full_alpha_bar()[timesteps]
    return schedule_constants(timesteps, alpha_bar, shifted(alpha_bar, 1))


def strided_schedule(stride: int) -> NoiseSchedule:
    """All T timesteps, each with the constants of a jump from t to t - stride (to x_0 below that).

    Entries stride, 2 stride, ... are those of the chain that is respaced to T / stride steps.
    """
    alpha_bar = full_alpha_bar()
    return schedule_constants(torch.arange(len(alpha_bar)), alpha_bar, shifted(alpha_bar, stride))


def full_alpha_bar() -> Tensor:
    """alpha_bar_t of the whole chain, float64 [T]."""
    return torch.cumprod(
        1 - torch.linspace(1e-4, 0.02, NUM_TRAIN_TIMESTEPS, dtype=torch.float64), dim=0
    )


def shifted(alpha_bar: Tensor, by: int) -> Tensor:
    """The entry `by` places before; 1, no noise, where there is none."""
    return torch.cat([torch.ones(by, dtype=torch.float64), alpha_bar[:-by]])


def schedule_constants(
    timesteps: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor
) -> NoiseSchedule:
    """The constants of steps from noise level alpha_bar to alpha_bar_prev, both float64 [K]."""
    beta = 1 - alpha_bar / alpha_bar_prev
    beta_tilde = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
    beta_tilde[beta_tilde == 0] = beta_tilde[beta_tilde > 0][0]
    constants = (
        alpha_bar,
        alpha_bar_prev.sqrt() * beta / (1 - alpha_bar),
        (1 - beta).sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar),
        beta.log(),
        beta_tilde.log(),
    )
    return NoiseSchedule(timesteps, *(constant.float() for constant in constants))


def add_noise(schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, k: Tensor) -> Tensor:
    """x_t ~ q(x_t | x_0), DDPM Eq. 4. x_0, eps [N, C, H, W]; k int [N] indexes the schedule."""
    alpha_bar = schedule.alpha_bar[k].view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps


def posterior_mean(schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, k: Tensor) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x_0), DDPM Eq. 7. Shapes as in `add_noise`."""
    return schedule.mean_x0[k].view(-1, 1, 1, 1) * x_0 + schedule.mean_xt[k].view(-1, 1, 1, 1) * x_t


def log_variance(schedule: NoiseSchedule, v: Tensor, k: Tensor) -> Tensor:
    """Log Sigma, by v in [-1, 1] between its bounds. Source: Improved DDPM Eq. 15.

    v: [N, C, H, W]; k: int [N].
    """
    f = (v + 1) / 2
    upper = schedule.log_beta[k].view(-1, 1, 1, 1)
    lower = schedule.log_beta_tilde[k].view(-1, 1, 1, 1)
    return f * upper + (1 - f) * lower


class HybridLoss(NamedTuple):
    """Per-sample terms, float32 [N]: `mse` on F, `vlb` in bits per dimension.

    The loss is the mean of their sum.
    """

    mse: Tensor
    vlb: Tensor


def hybrid_loss(
    schedule: NoiseSchedule,
    x_0: Tensor,
    eps: Tensor,
    k: Tensor,
    output: Tensor,
    prediction: Prediction = EPSILON,
) -> HybridLoss:
    """L_hybrid of Improved DDPM (Eq. 16) as ADM weights it: MSE + the variational term.

    The MSE is that of F, of weight 1 at every t. The variational term trains v only: F is detached
    in it. x_0, eps: [N, C, H, W]; k: int [N]; output: [N, 2C, H, W], the U-Net's (F, v) for
    add_noise(x_0, eps, k).
    """
    x_0, output = x_0.float(), output.float()
    F_hat, _v = output.chunk(2, dim=1)
    target = prediction.target(x_0, eps, add_noise(schedule, x_0, eps, k), schedule.alpha_bar[k])
    mse = (F_hat - target).square().mean(dim=(1, 2, 3))

    terms = reverse_step(schedule, x_0, eps, k, output, prediction)
    mean, mean_hat, log_var, log_var_hat = terms
    kl = gaussian_kl(mean, log_var, mean_hat, log_var_hat)
    nll = -discretised_gaussian_log_likelihood(x_0, mean_hat, 0.5 * log_var_hat)
    vlb = torch.where(k.view(-1, 1, 1, 1) == 0, nll, kl).mean(dim=(1, 2, 3)) / math.log(2)
    return HybridLoss(mse, vlb)


def stride_loss(
    strided: NoiseSchedule,
    stride: int,
    x_0: Tensor,
    eps: Tensor,
    k: Tensor,
    output: Tensor,
    prediction: Prediction = EPSILON,
) -> Tensor:
    """The variational term for jumps of `stride` timesteps, bits per dimension [N]; 0 below it.

    Ours, beyond Improved DDPM: between neighbours of the full chain the bounds of Sigma differ by a
    few percent, so that L_hybrid hardly tells v where to be, and hundreds of thousands of steps
    are needed; in a chain of 20 steps the same v decides over a third of the noise. Only v learns
    from it. Arguments as `hybrid_loss`; `strided` is `strided_schedule(stride)`.
    """
    terms = reverse_step(strided, x_0.float(), eps, k, output.float(), prediction)
    mean, mean_hat, log_var, log_var_hat = terms
    kl = gaussian_kl(mean, log_var, mean_hat, log_var_hat).mean(dim=(1, 2, 3)) / math.log(2)
    return torch.where(k >= stride, kl, torch.zeros_like(kl))


def reverse_step(
    schedule: NoiseSchedule,
    x_0: Tensor,
    eps: Tensor,
    k: Tensor,
    output: Tensor,
    prediction: Prediction,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean of q(x_{t-1} | x_t, x_0) and of the model's step, then both log variances.

    F is detached, so that what follows from these trains v alone.
    """
    x_t = add_noise(schedule, x_0, eps, k)
    x_0_hat, v = prediction.read(output, x_t, schedule.alpha_bar[k])
    x_0_hat = x_0_hat.detach()
    mean = posterior_mean(schedule, x_0, x_t, k)
    mean_hat = posterior_mean(schedule, x_0_hat, x_t, k)
    return (
        mean,
        mean_hat,
        schedule.log_beta_tilde[k].view(-1, 1, 1, 1),
        log_variance(schedule, v, k),
    )


def gaussian_kl(mean: Tensor, log_var: Tensor, mean_hat: Tensor, log_var_hat: Tensor) -> Tensor:
    """KL of two diagonal Gaussians, elementwise, nats."""
    spread = log_var_hat - log_var - 1 + (log_var - log_var_hat).exp()
    return 0.5 * (spread + (mean - mean_hat).square() * (-log_var_hat).exp())


def discretised_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log of a Gaussian's mass on the bin x ± 1/255, x in [-1, 1]; the outermost bins are open.

    Source: DDPM Eq. 13. All [N, C, H, W]; nats.
    """
    inverse_std = (-log_std).exp()
    upper = torch.special.ndtr((x - mean + 1 / 255) * inverse_std)
    lower = torch.special.ndtr((x - mean - 1 / 255) * inverse_std)
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp(min=1e-12).log()

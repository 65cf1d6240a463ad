"""Where and in which arithmetic to compute."""

import time

import torch
from accelerate import Accelerator
from torch import nn

from synth.config import Precision


def make_accelerator(precision: Precision) -> Accelerator:
    """An accelerator on the GPU when there is one, else on the CPU (gloo between several processes).

    precision: "auto" becomes the faster of fp32 and bf16 on this device.
    """
    has_device = torch.cuda.is_available() or torch.backends.mps.is_available()
    if precision == "auto":
        precision = fastest_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return Accelerator(cpu=not has_device, mixed_precision="no" if precision == "fp32" else "bf16")


def fastest_precision(device: torch.device) -> Precision:
    """The faster arithmetic for a U-Net's convolutions: on a CPU measured (a tenth of a second), on a GPU known."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    return (
        "bf16"
        if time_convolution(torch.bfloat16) < 0.8 * time_convolution(torch.float32)
        else "fp32"
    )


def time_convolution(dtype: torch.dtype) -> float:
    """Seconds of the fastest of five 3x3 convolutions, 64 to 64 channels, on 4 images of 64x64 on the CPU."""
    conv = nn.Conv2d(64, 64, 3, padding=1).to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.ones(4, 64, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)
    seconds = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            conv(x)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:])

"""Where and in which arithmetic to compute."""

import time
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from synth.base.options import Precision, Tracker

PATIENCE = timedelta(hours=12)
"""That processes wait for the first, which measures, scores and writes for all of them; torch's own
is ten minutes."""
MAX_BATCH_SIZE = 256
"""More is no faster on any device, and a batch is what a kill loses."""
MEMORY_SHARE = 0.7
"""Of the free memory; the rest is for what the caching allocator cannot use."""


def make_accelerator(
    precision: Precision, tracker: Tracker = "none", folder: Path | None = None
) -> Accelerator:
    """An accelerator on the GPU when there is one, else on the CPU (gloo between processes).

    precision: "auto" becomes the faster of fp32 and bf16 on the first process's device; all
    processes compute in the same. tracker: what `Accelerator.init_trackers` will log to, in
    `folder`.
    """
    device = default_device()
    cpu = device.type == "cpu"
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    chosen = [precision]
    if precision == "auto" and state.is_main_process:
        chosen = [fastest_precision(device)]
    broadcast_object_list(chosen)
    return Accelerator(
        cpu=cpu,
        mixed_precision="no" if chosen[0] == "fp32" else "bf16",
        log_with=None if tracker == "none" else tracker,
        project_dir=folder,
    )


def default_device() -> torch.device:
    """The GPU (CUDA or Apple's) when there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def fastest_precision(device: torch.device) -> Precision:
    """The faster arithmetic for a U-Net's convolutions.

    On a CPU measured (a tenth of a second), on a GPU known.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    bf16_share = time_convolution(torch.bfloat16) / time_convolution(torch.float32)
    return "bf16" if bf16_share < 0.8 else "fp32"


def time_convolution(dtype: torch.dtype) -> float:
    """Seconds of the fastest of five 3x3 convolutions, 64 to 64 channels, 4 images of 64x64."""
    conv = nn.Conv2d(64, 64, 3, padding=1, dtype=dtype)
    conv.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stubs)
    x = torch.ones(4, 64, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)
    seconds = []
    with torch.no_grad():
        for _ in range(6):
            start = time.perf_counter()
            conv(x)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def fitting_batch_size(free_bytes: float, image_bytes: float) -> int:
    """The largest power of two whose images fit into MEMORY_SHARE of the memory; 1 at least."""
    fitting = int(MEMORY_SHARE * free_bytes / max(image_bytes, 1))
    return min(MAX_BATCH_SIZE, 1 << max(fitting.bit_length() - 1, 0))

"""Where and in which arithmetic to compute."""

from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from synth.base.options import Precision, Tracker

PATIENCE = timedelta(hours=12)
"""That processes wait for the first, which measures, scores and writes for all of them; torch's own
is ten minutes."""
CPU_BF16 = ("avx512_bf16", "amx_bf16")
"""Capabilities of a processor, as torch calls them, that make bf16 faster than fp32."""
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
    mixed_precision = "no" if chosen[0] == "fp32" else "bf16"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()  # it keeps the first arithmetic of a process
    return Accelerator(
        cpu=cpu,
        mixed_precision=mixed_precision,
        log_with=None if tracker == "none" else tracker,
        project_dir=folder,
    )


def default_device() -> torch.device:
    """The GPU (CUDA or Apple's) when there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def fastest_precision(device: torch.device) -> Precision:
    """The faster arithmetic for convolutions, by what the hardware can do: the same on every run.

    bf16 on GPUs that have it, and on processors with instructions for it (AVX-512 BF16 or AMX);
    elsewhere it is emulated, and slower.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if any(able.get(name) for name in CPU_BF16) else "fp32"


def fitting_batch_size(free_bytes: float, image_bytes: float) -> int:
    """The largest power of two whose images fit into MEMORY_SHARE of the memory; 1 at least."""
    fitting = int(MEMORY_SHARE * free_bytes / max(image_bytes, 1))
    return min(MAX_BATCH_SIZE, 1 << max(fitting.bit_length() - 1, 0))

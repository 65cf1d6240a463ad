"""How a diffusion model samples fastest: arithmetic, batch size, compilation."""

from pathlib import Path

import torch

from synth.base.device import fastest_precision, fitting_batch_size
from synth.base.files import read_json
from synth.base.memory import is_out_of_memory
from synth.base.options import Precision
from synth.diffusion.model import DiffusionModel
from synth.diffusion.sampling import sample_images
from synth.sia.format import HEADER_FILE

CPU_BATCH_SIZE = 8
"""Images per second of processor time at 1, 4, 8, 16: 0.76, 0.86, 1.09, 1.02 in fp32, and 1.39 at 8
in bf16 (3.3 M parameters, 96 px, one thread of an AMD EPYC Zen 5, a busy machine, 2026-11-21)."""
NUM_PROBED = 4


def choose_precision(asked: Precision | None, model: DiffusionModel, folder: Path) -> Precision:
    """The arithmetic for an SIA folder: a begun one keeps its own unless another is asked for."""
    if asked in ("fp32", "bf16"):
        return asked
    if (folder / HEADER_FILE).exists():
        config = read_json(folder / HEADER_FILE).get("config")
        recorded = config.get("precision") if isinstance(config, dict) else None
        if recorded in ("fp32", "bf16"):
            return recorded
    return model.precision if asked is None else fastest_precision(model.unet.device)


def auto_batch_size(model: DiffusionModel, precision: Precision | None = None) -> int:
    """How many images to draw at once: on a GPU what its free memory holds, else 8."""
    device = model.unet.device
    if device.type != "cuda":
        return CPU_BATCH_SIZE
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    numbers = range(NUM_PROBED)
    try:
        sample_images(
            model, [0.0] * NUM_PROBED, 0, numbers, 2, model.categories[0], precision=precision
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 1
    image_bytes = (torch.cuda.max_memory_allocated(device) - before) / NUM_PROBED
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return fitting_batch_size(free_bytes, image_bytes)


def compiled(model: DiffusionModel) -> DiffusionModel:
    """The same model with its network compiled by torch.compile at the first batch."""
    return model._replace(unet=torch.compile(model.unet))  # pyright: ignore[reportArgumentType]

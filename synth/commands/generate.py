"""`synth generate`."""

from typing import Annotated

import tyro

from synth.command import (
    Folder,
    progress_bar,
    require_output,
    require_positive,
    say,
)
from synth.config import SdasConfig


def generate(
    *,
    model: Folder,
    out: Folder,
    num: int = 200,
    strength: Annotated[tuple[float, float], tyro.conf.arg(metavar="LOW HIGH")] = (0.1, 0.2),
    num_steps: int = 20,
    batch_size: int = 16,
    seed: int = 0,
) -> None:
    """Draw SDAS anomaly images into an SIA folder.

    What is already there stays, and a larger --num goes on from it.

    Args:
        model: What `synth train` made.
        out: The images go to OUT/<dataset>/<category>.
        num: How many images there shall be.
        strength: Range of s, drawn per image; 0 0 is the plain DDPM.
        num_steps: Reverse steps of the chain, a divisor of 1000.
        batch_size: Images drawn at once; changes speed and memory only.
        seed: Of every image, together with its index.

    """
    config = SdasConfig(strength=strength, num_steps=num_steps, seed=seed)
    require_positive(num=num, batch_size=batch_size)
    require_output(out)
    from synth.device import make_accelerator
    from synth.generate import generate_sia
    from synth.model import load_model

    accelerator = make_accelerator("fp32")
    diffusion = load_model(model, accelerator.device)
    with progress_bar("generating", "image") as update:
        folder = generate_sia(
            diffusion,
            config,
            out,
            num,
            batch_size=batch_size,
            process=accelerator.process_index,
            num_processes=accelerator.num_processes,
            on_image=update,
        )
    say(f"SIA folder: {folder}")

"""Randomness by name: every draw has its own seed.

So no result depends on order, batch or process.
"""

import numpy as np
import torch


def derive_seed(*keys: int) -> int:
    """One well-mixed 63-bit seed for a tuple of non-negative integers, e.g. (seed, image index).

    Tuples of different lengths differ too: SeedSequence alone takes (1, 2) and (1, 2, 0) for one.
    """
    return int(
        np.random.SeedSequence((len(keys), *keys)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def generator(*keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator of its own for `keys` on `device`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*keys))

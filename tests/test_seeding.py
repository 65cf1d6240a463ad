import itertools

import numpy as np
import torch

from synth.base.seeding import derive_seed, generator


def test_seeds_differ_for_every_tuple_trailing_zeros_and_lengths_included() -> None:
    keys = [k for length in (1, 2, 3, 4) for k in itertools.product(range(4), repeat=length)]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_every_bit_of_a_seed_is_a_fair_coin() -> None:
    seeds = np.array([derive_seed(0, index) for index in range(2000)])
    ones = (seeds[:, None] >> np.arange(63) & 1).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 6 * 0.5 / 2000**0.5


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert derive_seed(0, 1) == PINNED
    expected = torch.randn(3, generator=torch.Generator().manual_seed(PINNED))
    assert torch.equal(torch.randn(3, generator=generator(0, 1)), expected)


PINNED = 7006255215521402662

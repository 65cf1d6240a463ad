import tracemalloc

import numpy as np
import pytest
import torch
from products import SIZE, draw_noise, normal_image

from detect.data.samples import BlendedDataset, batches, shuffled
from synth.base.errors import UserError
from synth.base.seeding import derive_seed
from synth.data.foreground import EVERYTHING, ForegroundRule

NORMALS = np.stack([normal_image(n) for n in range(5)])
CPU = torch.device("cpu")


def dataset(seed: int = 0, **kwargs) -> BlendedDataset:
    return BlendedDataset(NORMALS, EVERYTHING, draw_noise, seed=seed, **kwargs)


def as_bytes(batch) -> bytes:
    return b"".join(np.ascontiguousarray(part).tobytes() for part in batch)


def test_sample_depends_on_seed_and_number_alone():
    forward, backward = dataset(), dataset()
    one = [as_bytes(forward[n]) for n in range(20)]
    other = [as_bytes(backward[n]) for n in reversed(range(20))][::-1]
    assert one == other
    assert len(set(one)) > 10
    assert [as_bytes(dataset(seed=1)[n]) for n in range(20)] != one


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on one core
@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_and_restarts_leave_batches_as_they_are(num_workers):
    whole = [as_bytes(b) for b in batches(dataset(), 4, 0, 6, CPU)]
    again = [as_bytes(b) for b in batches(dataset(), 4, 2, 6, CPU, num_workers=num_workers)]
    assert again == whole[2:]


def test_samples_are_those_that_were_always_drawn():
    """Trainings go on after an update, and seeds keep their meaning."""
    data = dataset(seed=3)
    shown = [data[n].number for n in range(15)]
    wanted = [np.random.default_rng(derive_seed(3, 0, e)).permutation(5) for e in range(3)]
    assert shown == np.concatenate(wanted).tolist()


def test_the_schedule_of_a_training_is_not_built_up_front():
    tracemalloc.start()
    try:
        next(batches(dataset(), 4, 0, 10**5, CPU))
        assert tracemalloc.get_traced_memory()[1] < 2**22  # a list of it: 20 MiB
    finally:
        tracemalloc.stop()


def test_an_epoch_is_shuffled_once():
    shuffled.cache_clear()
    data = dataset(seed=4)
    for n in range(23):
        data[n]
    assert shuffled.cache_info().misses == 5


def test_processes_share_a_batch_without_overlap():
    (whole,) = batches(dataset(), 4, 3, 4, CPU)
    parts = [next(batches(dataset(), 4, 3, 4, CPU, process=r, num_processes=2)) for r in (0, 1)]
    for r, part in enumerate(parts):
        assert as_bytes(part) == as_bytes([field[r::2] for field in whole])


def test_half_are_blended_and_each_epoch_shows_every_normal_once():
    data = dataset()
    samples = [data[n] for n in range(1000)]
    share = np.mean([bool(s.mask.any()) for s in samples])
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 1000)
    for epoch in range(3):
        shown = [samples[5 * epoch + k].normal.permute(1, 2, 0).numpy() for k in range(5)]
        places = [int((image == NORMALS).all((1, 2, 3)).argmax()) for image in shown]
        assert sorted(places) == [0, 1, 2, 3, 4]


def test_image_differs_from_normal_inside_the_mask_only():
    data = dataset()
    changed = 0
    for n in range(100):
        image, normal, mask, _ = data[n]
        assert image.dtype == normal.dtype == torch.uint8
        assert image.shape == (3, *SIZE)
        assert torch.equal(image[:, ~mask], normal[:, ~mask])
        changed += int((image != normal)[:, mask].sum())
        if not mask.any():
            assert torch.equal(image, normal)
    assert changed > 0


def test_share_of_one_blends_every_sample():
    data = dataset(anomalous_share=1.0)
    assert all(data[n].mask.any() for n in range(50))


def test_batch_is_scaled_to_unit_range():
    (batch,) = batches(dataset(), 8, 0, 1, CPU)
    assert batch.image.dtype == torch.float32
    assert 0 <= batch.image.min() <= batch.image.max() <= 1
    assert torch.equal((batch.normal * 255).round().to(torch.uint8)[0], dataset()[0].normal)


def test_missing_foreground_is_told_with_its_number():
    dark = np.concatenate([NORMALS, np.zeros_like(NORMALS[:2])])
    rule = ForegroundRule(method="otsu")
    with pytest.raises(UserError, match="none found in 2 of 7"):
        BlendedDataset(dark, rule, draw_noise, seed=0)


class BrokenSource:
    def __call__(self, rng, normal):
        raise UserError("file.png: broken in some way; remove it")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_users_mistake_in_a_worker_stays_one_line(num_workers):
    data = BlendedDataset(NORMALS, EVERYTHING, BrokenSource(), seed=0, anomalous_share=1.0)
    with pytest.raises(UserError) as caught:
        list(batches(data, 2, 0, 1, CPU, num_workers=num_workers))
    assert str(caught.value) == "file.png: broken in some way; remove it"

import numpy as np
import pytest
import torch
from torch import Tensor

from detect.detector import Batch
from detect.methods.realnet import select_channels
from synth.base.errors import UserError


def batches(count: int, seed: int = 0, size: tuple[int, int] = (16, 24)) -> list[Batch]:
    rng = torch.Generator().manual_seed(seed)

    def one() -> Batch:
        normal = torch.rand(3, 3, *size, generator=rng)
        mask = torch.rand(3, *size, generator=rng) > 0.8
        image = torch.where(mask.unsqueeze(1), torch.rand(3, 3, *size, generator=rng), normal)
        return Batch(image, normal, mask)

    return [one() for _ in range(count)]


def random_features(images: Tensor) -> list[Tensor]:
    """Two layers, of strides 2 and 4, from fixed random projections."""
    rng = torch.Generator().manual_seed(5)
    fine, coarse = torch.randn(7, 3, 2, 2, generator=rng), torch.randn(5, 3, 4, 4, generator=rng)
    return [
        torch.nn.functional.conv2d(images, fine, stride=2),
        torch.nn.functional.conv2d(images, coarse, stride=4),
    ]


def brute_force(data: list[Batch], layer: int) -> np.ndarray:
    """Equation by equation, pixel by pixel."""
    total = None
    for image, normal, mask, _ in data:
        a = random_features(image)[layer].double().numpy()
        b = random_features(normal)[layer].double().numpy()
        N, C, h, w = a.shape
        H, W = mask.shape[1:]
        losses = np.zeros(C)
        for c in range(C):
            d = (a[:, c] - b[:, c]) ** 2
            low, high = d.min(), d.max()
            for n in range(N):
                for y in range(h):
                    for x in range(w):
                        M = float(mask[n, y * H // h, x * W // w])
                        d_hat = (d[n, y, x] - low) / (high - low + 1e-4)
                        losses[c] += (d_hat - M) ** 2 / (N * h * w)
        total = losses if total is None else total + losses
    assert total is not None
    return total / len(data)


def test_scores_and_indices_equal_a_loop_over_the_equation() -> None:
    data = batches(2)
    result = select_channels(random_features, data, (3, 2))
    for layer, m in enumerate((3, 2)):
        want = brute_force(data, layer)
        np.testing.assert_allclose(result.scores[layer].numpy(), want, rtol=1e-5)
        assert result.indices[layer].tolist() == sorted(np.argsort(want)[:m].tolist())
        assert result.indices[layer].dtype == torch.int64


def test_channels_that_follow_the_mask_are_found() -> None:
    data = batches(4, seed=1)
    masks = {id(batch): batch.mask for batch in data}
    planted = [2, 11, 30]

    def features(images: Tensor) -> list[Tensor]:
        """Noise everywhere, but the residual of planted channels is the mask (at any scale)."""
        mask = next(m for i, m in masks.items() if torch.equal(by_id[i].image, images[:3]))
        rng = torch.Generator().manual_seed(2)
        maps = torch.randn(6, 32, 16, 24, generator=rng)
        for scale, channel in enumerate(planted, start=1):
            maps[:3, channel] = maps[3:, channel] + 10.0**scale * mask
        return [maps]

    by_id = {id(batch): batch for batch in data}
    result = select_channels(features, data, (3,))
    assert result.indices[0].tolist() == planted
    assert result.scores[0][planted].max() < 1e-3


def test_all_channels_are_kept_in_order_when_as_many_are_asked_for() -> None:
    result = select_channels(random_features, batches(1), (7, 5))
    assert [index.tolist() for index in result.indices] == [list(range(7)), list(range(5))]


def test_a_channel_without_numbers_comes_last() -> None:
    def features(images: Tensor) -> list[Tensor]:
        maps = random_features(images)[0]
        maps[:, 3] = torch.nan
        return [maps]

    result = select_channels(features, batches(2), (6,))
    assert result.indices[0].tolist() == [0, 1, 2, 4, 5, 6]
    assert result.scores[0][3] == torch.inf


def test_the_same_data_gives_the_same_answer_and_one_pass_per_batch() -> None:
    calls = []

    def counted(images: Tensor) -> list[Tensor]:
        calls.append(len(images))
        return random_features(images)

    first = select_channels(counted, batches(3), (3, 2))
    assert calls == [6, 6, 6]
    again = select_channels(random_features, batches(3), (3, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.scores, again.scores, strict=True))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((8, 2), "got 8 for backbone layer number 1 in use; allowed are 1 to 7"),
        ((3, 0), "got 0 for backbone layer number 2"),
        ((3,), "got 1 counts for 2 layers"),
    ],
)
def test_impossible_counts_are_refused(counts: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        select_channels(random_features, batches(1), counts)


def test_no_images_are_refused() -> None:
    with pytest.raises(UserError, match="at least one batch"):
        select_channels(random_features, [], (3, 2))

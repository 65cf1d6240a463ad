import pytest
import torch

from detect.methods.realnet.rrs import RRS, SegmentationHead
from synth.base.errors import UserError


def random_residual(seed: int = 0, channels: int = 6) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(3, channels, 4, 5, generator=rng).square()


def test_a_hand_made_residual() -> None:
    """Channel 1 has the sharpest peak, channel 2 is raised most as a whole, channel 0 is dull."""
    residual = torch.zeros(2, 3, 2, 2)
    residual[0, 0] = torch.tensor([[0.0, 0.1], [0.0, 0.1]])
    residual[1, 0] = torch.tensor([[0.1, 0.0], [0.1, 0.0]])
    residual[0, 1, 0, 0] = 9.0
    residual[0, 2] = 1.0
    rrs = RRS(3, num_max=1, num_mean=1)
    assert rrs.select(residual)[0].tolist() == [1, 2]
    selected = rrs(residual)
    assert torch.equal(selected[0, 0], residual[0, 1])
    assert torch.equal(selected[0, 1], residual[0, 2])


def test_selection_equals_brute_force() -> None:
    residual = random_residual()
    selected = RRS(6, num_max=3, num_mean=4)(residual)
    x = residual.double()
    z = x.clone()
    for c in range(6):
        z[:, c] = (x[:, c] - x[:, c].mean()) / (x[:, c].var(correction=0) + 1e-5) ** 0.5
    for n in range(3):
        by_max = sorted(range(6), key=lambda c: -z[n, c].max().item())[:3]
        by_mean = sorted(range(6), key=lambda c: -z[n, c].mean().item())[:4]
        assert torch.equal(selected[n], residual[n, by_max + by_mean])


def test_a_channel_that_wins_both_lists_appears_twice() -> None:
    residual = random_residual()
    selected = RRS(6, num_max=6, num_mean=6)(residual)
    assert selected.shape == (3, 12, 4, 5)
    key = residual.sum((2, 3)).sort(dim=1).values
    for half in (selected[:, :6], selected[:, 6:]):
        torch.testing.assert_close(half.sum((2, 3)).sort(dim=1).values, key)


def test_the_scale_of_a_layer_decides_neither_selection_nor_order() -> None:
    residual = random_residual(1)
    scale = torch.tensor([1, 1, 1e3, 1e3, 50, 50]).view(1, 6, 1, 1)
    rrs = RRS(6, num_max=2, num_mean=2)
    index = rrs.select(residual)
    assert torch.equal(rrs.select(residual * scale), index)
    plain = torch.cat([x.topk(2).indices for x in ((residual * scale).amax((2, 3)),) * 2], dim=1)
    assert not torch.equal(plain, index), "without normalisation the scale would decide"


def test_residuals_come_out_as_they_went_in() -> None:
    residual = random_residual(2)
    rrs = RRS(6, num_max=2, num_mean=2)
    want = residual.gather(1, rrs.select(residual)[:, :, None, None].expand(-1, -1, 4, 5))
    assert torch.equal(rrs(residual), want)


def test_evaluation_uses_running_statistics() -> None:
    rrs = RRS(2, num_max=1, num_mean=0)
    noisy = random_residual(channels=2) * torch.tensor([100.0, 1.0]).view(1, 2, 1, 1)
    rrs(noisy)
    mean, var = noisy.mean((0, 2, 3)), noisy.var((0, 2, 3))
    torch.testing.assert_close(rrs.norm.running_mean, 0.9 * mean)
    torch.testing.assert_close(rrs.norm.running_var, 0.9 * var + 0.1)

    probe = torch.zeros(1, 2, 4, 5)
    probe[0, 0, 0, 0], probe[0, 1, 0, 0] = 20.0, 10.0  # high for channel 1, ordinary for channel 0
    before = {key: value.clone() for key, value in rrs.state_dict().items()}
    assert rrs.eval().select(probe).tolist() == [[1]]
    assert all(torch.equal(before[key], value) for key, value in rrs.state_dict().items())


def test_in_evaluation_an_image_does_not_depend_on_its_batch() -> None:
    residual = random_residual(4)
    rrs = RRS(6, num_max=2, num_mean=2)
    rrs(residual)
    rrs.eval()
    together = rrs(residual)
    assert torch.equal(rrs(residual[1:2]), together[1:2])


def test_gradients_reach_the_selected_residuals_only() -> None:
    residual = random_residual(3).requires_grad_()
    rrs = RRS(6, num_max=2, num_mean=2)
    index = rrs.select(residual)
    rrs(residual).sum().backward()
    count = torch.zeros(3, 6).scatter_add(1, index, torch.ones(3, 4))
    assert residual.grad is not None
    assert torch.equal(residual.grad, count.view(3, 6, 1, 1).expand(3, 6, 4, 5))


@pytest.mark.parametrize(("num_max", "num_mean"), [(7, 1), (1, 7), (-1, 2)])
def test_impossible_counts_are_refused(num_max: int, num_mean: int) -> None:
    with pytest.raises(UserError, match="allowed are 0 to 6"):
        RRS(6, num_max, num_mean)


def test_the_head_has_the_authors_size() -> None:
    with torch.device("meta"):
        head = SegmentationHead(512, (128, 32, 8, 4))
    assert sum(p.numel() for p in head.parameters()) == 5_872_662


@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_the_head_gives_two_classes_at_any_resolution(size: tuple[int, int]) -> None:
    logits = SegmentationHead(4, (8, 4, 4, 2))(torch.rand(2, 4, 16, 13), size)
    assert logits.shape == (2, 2, *size)
    assert logits.dtype == torch.float32


def test_the_head_learns_to_tell_clear_from_clearest_at_a_high_learning_rate() -> None:
    torch.manual_seed(0)
    residual = torch.rand(4, 8, 8, 8) * torch.tensor([0.0, 1.0, 2.0, 4.0]).view(4, 1, 1, 1)
    mask = torch.tensor([0, 0, 1, 1]).view(4, 1, 1).expand(4, 16, 16)
    head = SegmentationHead(8, (16, 16, 8, 4), activation="silu")
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(head(residual, (16, 16)), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()
    margin = head(residual, (16, 16)).diff(dim=1).mean((1, 2, 3))
    assert margin[2] > margin[1] > margin[0]
    assert margin[3] > margin[2]
    assert (margin[2:].sigmoid() > 0.8).all()

import pytest
import torch
import torch.nn.functional as F

from detect.methods.realnet.reconstruction import (
    ReconstructionUNet,
    ResBlockUp,
    SelfAttention,
    group_norm,
)


@pytest.mark.parametrize(("channels", "expected"), [(256, 51_846_144), (512, 207_271_936)])
def test_parameters_are_as_many_as_in_the_authors_network(channels: int, expected: int) -> None:
    with torch.device("meta"):
        network = ReconstructionUNet(channels)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_the_paper_needs_518_million_parameters() -> None:
    with torch.device("meta"):
        networks = [ReconstructionUNet(m) for m in (256, 512, 512, 256)]
    assert sum(p.numel() for n in networks for p in n.parameters()) == 518_236_160


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (7, 9), (1, 1), (5, 2), (3, 16)])
@pytest.mark.parametrize(("channels", "width"), [(6, 2), (16, 12), (10, 5)])
def test_any_size_and_small_odd_widths_work(
    channels: int, width: int, size: tuple[int, int]
) -> None:
    network = ReconstructionUNet(channels, width)
    torch.nn.init.ones_(network.out.weight)
    x = torch.randn(2, channels, *size)
    y = network(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_it_starts_at_zero() -> None:
    assert not ReconstructionUNet(8)(torch.randn(1, 8, 8, 8)).any()


def test_padding_only_repeats_the_border() -> None:
    network = ReconstructionUNet(8, 8)
    torch.nn.init.normal_(network.out.weight, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 8, 7, 6)
    padded = F.pad(x, (0, 2, 0, 1), mode="replicate")
    torch.testing.assert_close(network(x), network(padded)[..., :7, :6])


def test_attention_equals_the_formula_per_head() -> None:
    attention = SelfAttention(8, head_dim=4).double()
    torch.nn.init.normal_(attention.out.weight, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)

    qkv = attention.qkv(attention.norm(x)).flatten(2)  # [N, 3C, pixels]
    q, k, v = qkv.chunk(3, dim=1)
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = torch.einsum("ncs,nct->nst", q[:, head], k[:, head]) / 4**0.5
        heads.append(torch.einsum("nst,nct->ncs", weights.softmax(dim=2), v[:, head]))
    want = x + attention.out(torch.cat(heads, dim=1).view(2, 8, 3, 5))
    torch.testing.assert_close(attention(x), want)


@pytest.mark.parametrize(("channels", "num_heads"), [(8, 1), (64, 1), (128, 2), (200, 2), (320, 5)])
def test_heads_have_64_channels_where_the_width_allows(channels: int, num_heads: int) -> None:
    assert SelfAttention(channels, head_dim=64).num_heads == num_heads


@pytest.mark.parametrize(
    ("channels", "groups"), [(128, 32), (384, 32), (512, 32), (64, 16), (18, 2), (8, 2), (3, 1)]
)
def test_groups_are_the_authors_or_four_channels_wide(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_upsampling_doubles_the_size() -> None:
    assert ResBlockUp(4)(torch.randn(1, 4, 3, 5)).shape == (1, 4, 6, 10)


def test_it_learns_to_repair_features() -> None:
    rng = torch.Generator().manual_seed(3)
    normal = torch.randn(8, 8, 1, 1, generator=rng).expand(8, 8, 8, 8)
    broken = normal.clone()
    broken[:, :, 2:4, 2:5] = 3.0
    torch.manual_seed(0)
    network = ReconstructionUNet(8, 8)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(network(broken), normal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]

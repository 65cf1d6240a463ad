from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from detect.methods.csflow import PRESETS as CSFLOW
from detect.methods.flow import ActNorm, Flow, Permutation, negative_log_likelihood
from detect.methods.validflow import PRESETS as VALIDFLOW

C = 4


def csflow(channels: int, **fields: Any) -> Flow:
    return replace(CSFLOW["paper"], **fields).flow(channels)


def validflow(channels: int, **fields: Any) -> Flow:
    return replace(VALIDFLOW["paper"], **fields).flow(channels)


def features(
    num_images: int = 2, channels: int = C, finest: int = 4, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num_images, channels, side, side, generator=generator)
        for side in (finest, finest // 2, finest // 4)
    ]


def moved(flow: Flow, maps: list[Tensor]) -> Flow:
    """A flow that does something: the couplings start as the identity."""
    flow.initialise(maps)
    generator = torch.Generator().manual_seed(1)
    for parameter in flow.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return flow


FLOWS = {
    "csflow": lambda: csflow(C, hidden=6, kernels=(3, 5)),
    "validflow": lambda: validflow(C, num_modules=1, hidden=6, cbam_reduction=2),
}
kinds = pytest.mark.parametrize("make", FLOWS.values(), ids=FLOWS)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: csflow(304), 275_227_288),
        (lambda: csflow(304, kernels=(3, 3, 3, 3, 3, 5)), 370_504_676),
        (lambda: validflow(304), 162_885_132),
    ],
)
def test_the_papers_numbers_of_parameters(make, count):
    with torch.device("meta"):
        flow = make()
    assert sum(parameter.numel() for parameter in flow.parameters()) == count


@kinds
def test_inverse(make):
    maps = features(3, finest=8)
    flow = moved(make(), maps)
    mapped = flow(maps)
    assert not torch.allclose(mapped.maps[0], maps[0], atol=0.1)
    for x, again in zip(maps, flow.inverse(mapped.maps), strict=True):
        torch.testing.assert_close(again, x, atol=1e-5, rtol=0)


@kinds
def test_log_det_is_that_of_the_jacobian(make):
    maps = [x.double() for x in features(1)]
    flow = moved(make().double(), maps)
    shapes = [x.shape[1:] for x in maps]
    sizes = [shape.numel() for shape in shapes]

    def flat(x: Tensor) -> Tensor:
        parts = [p.view(1, *s) for p, s in zip(x.split(sizes), shapes, strict=True)]
        return torch.cat([z.flatten() for z in flow(parts).maps])

    jacobian = torch.autograd.functional.jacobian(flat, torch.cat([x.flatten() for x in maps]))
    expected = torch.linalg.slogdet(jacobian).logabsdet
    # sigma is float32 within a coupling, whatever the features are
    torch.testing.assert_close(
        flow(maps).log_det, expected[None], rtol=1e-5, atol=1e-4, check_dtype=False
    )


@kinds
def test_loss_of_a_batch_is_the_mean_of_single_losses(make):
    maps = features(3)
    flow = moved(make(), maps)
    together = negative_log_likelihood(flow(maps))
    alone = [negative_log_likelihood(flow([x[[n]] for x in maps])) for n in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_negative_log_likelihood_is_that_of_a_gaussian():
    mapped = Flow([])(features())
    z = torch.cat([x.flatten(1) for x in mapped.maps], dim=1)
    gaussian = torch.distributions.Normal(0, 1).log_prob(z).mean(1)
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(negative_log_likelihood(mapped), -gaussian - constant)


@kinds
def test_a_fresh_flow_only_permutes(make):
    maps = features()
    flow = make()
    mapped = flow(maps)
    orders = [step.order for step in flow.steps if isinstance(step, Permutation)]
    for i, x in enumerate(maps):
        torch.testing.assert_close(mapped.maps[i], x[:, orders[0][i]][:, orders[1][i]])
    torch.testing.assert_close(mapped.log_det, torch.zeros(2))
    assert len({tuple(order[i].tolist()) for order in orders for i in range(3)}) > 1


def test_act_norm_starts_at_mean_zero_and_deviation_one():
    maps = [3 * x + 5 for x in features(6)]
    maps[0][:, 1] = 7.0  # a channel without variance
    norm = ActNorm(3, C)
    norm.initialise(maps)
    for x in norm(maps).maps:
        means = x.transpose(0, 1).flatten(1).mean(1)
        torch.testing.assert_close(means, torch.zeros(C), atol=1e-5, rtol=0)
    deviations = norm(maps).maps[1].transpose(0, 1).flatten(1).std(1, correction=0)
    torch.testing.assert_close(deviations, torch.ones(C))
    assert torch.isfinite(norm(maps).log_det).all()


def test_a_channel_that_was_constant_at_first_is_not_blown_up():
    maps = features(6)
    for x in maps:
        x[:, 1] = 0
    norm = ActNorm(3, C)
    norm.initialise(maps)
    for x in maps:
        x[:, 1] = 1  # about the others' deviation
    assert max(x.abs().max().item() for x in norm(maps).maps) < 10


@kinds
def test_a_state_dict_gives_the_same_latents(make):
    maps = features()
    flow = moved(make(), maps)
    fresh = make()
    for module in fresh.modules():
        if isinstance(module, Permutation):
            module.order = module.order.flip(1)  # has to come from the state
    fresh.load_state_dict(flow.state_dict(), strict=True)
    for z, again in zip(flow(maps).maps, fresh(maps).maps, strict=True):
        assert torch.equal(z, again)


def test_half_precision_is_for_the_convolutions_alone():
    maps = features()
    flow = moved(csflow(C, hidden=6, kernels=(3,)), maps)
    with torch.autocast("cpu", torch.bfloat16):
        mapped = flow(maps)
    assert {z.dtype for z in mapped.maps} == {mapped.log_det.dtype} == {torch.float32}
    exact = flow(maps)
    assert not torch.equal(mapped.maps[0], exact.maps[0])
    torch.testing.assert_close(mapped.log_det, exact.log_det, rtol=0.05, atol=1)

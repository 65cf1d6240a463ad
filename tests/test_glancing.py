import pytest
import torch
import torch.nn.functional as F

from detect.methods.glancing.global_net import GlobalNet, PartialConv, Visible, around
from detect.methods.glancing.local import LAYERS, LocalNet, compactness

N_FEATURES = 8


def images(side: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("patch", "cells"), [(17, 32), (33, 9), (65, 5)])
def test_dense_descriptors_equal_those_of_cropped_patches(patch, cells):
    torch.manual_seed(0)
    net = LocalNet(patch, N_FEATURES, 16).double()
    whole = images(patch + 31).double()
    dense = net(whole)[0]
    assert dense.shape[1:] == (cells, cells)
    size, stride = net.field
    for i, j in ((0, 0), (1, 2), (3, 1)):
        top, left = i * stride, j * stride
        if max(top, left) + patch > whole.shape[-1]:
            continue
        alone = net(whole[..., top : top + patch, left : left + patch])[0, :, 0, 0]
        torch.testing.assert_close(dense[:, i, j], alone, atol=1e-6, rtol=1e-6)
    assert size <= patch


@pytest.mark.parametrize("patch", LAYERS)
def test_receptive_field_is_what_gradients_reach(patch):
    torch.manual_seed(0)
    net = LocalNet(patch, N_FEATURES, 16)
    net.net = torch.nn.Sequential(
        *[torch.nn.AvgPool2d(2) if isinstance(m, torch.nn.MaxPool2d) else m for m in net.net]
    )
    image = images(patch + 15).requires_grad_()
    net(image)[0, :, 1, 1].sum().backward()
    assert image.grad is not None
    touched = image.grad[0].abs().sum(0).nonzero()
    size, stride = net.field
    assert touched.min(0).values.tolist() == [stride, stride]
    assert touched.max(0).values.tolist() == [stride + size - 1] * 2


def test_a_full_mask_makes_a_partial_convolution_ordinary():
    torch.manual_seed(0)
    conv = PartialConv(3, 5, 3, 2)
    torch.nn.init.normal_(conv.bias)
    image = images(11)
    seen = conv.visible(Visible(image, torch.ones(1, 1, 11, 11)))
    ordinary = F.conv2d(image, conv.conv.weight, conv.bias, 2, 1)
    inside = seen.features[..., 1:-1, 1:-1]
    torch.testing.assert_close(inside, ordinary[..., 1:-1, 1:-1])
    torch.testing.assert_close(seen.features, ordinary)
    assert seen.mask.all()


def test_a_partial_convolution_by_hand():
    conv = PartialConv(1, 1, 3)
    conv.conv.weight.data.fill_(1)
    conv.bias.data.fill_(10)
    image = torch.arange(9.0).view(1, 1, 3, 3)
    mask = torch.zeros(1, 1, 3, 3)
    mask[0, 0, 0] = 1  # 0, 1, 2
    middle, bottom = conv.visible(Visible(image * mask, mask)).features[0, 0, 1:, 1].tolist()
    assert middle == pytest.approx(3 * 9 / 3 + 10)
    assert bottom == 0  # sees nothing
    corner = conv.visible(Visible(image * mask, mask)).features[0, 0, 0, 0].item()
    assert corner == pytest.approx((0 + 1) * 4 / 2 + 10)  # four pixels inside, two visible


def opened(net: GlobalNet) -> GlobalNet:
    for block in net.blocks:
        torch.nn.init.normal_(block.conv2.conv.weight, std=0.05)
    return net


def test_pixels_under_the_hole_have_no_influence():
    torch.manual_seed(0)
    net = opened(GlobalNet(N_FEATURES, (16, 16, 16)))
    image = images(96)
    mask = torch.ones(1, 1, 96, 96)
    mask[..., 32:64, 32:64] = 0
    centres = torch.tensor([[6, 6], [3, 9]])
    before = around(net(image, mask), centres)
    changed = torch.where(mask > 0, image, 100 * torch.randn_like(image))
    torch.testing.assert_close(around(net(changed, mask), centres), before, rtol=0, atol=0)
    outside = image.clone()
    outside[..., 20:28, 44:52] += 1
    assert not torch.equal(around(net(outside, mask), centres), before)


def test_compactness_is_the_mean_correlation():
    decorrelated = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert compactness(decorrelated).item() == pytest.approx(0, abs=1e-6)
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    expected = torch.corrcoef(features.T).abs()
    expected.fill_diagonal_(0)
    assert compactness(features).item() == pytest.approx(expected.mean().item(), rel=1e-5)

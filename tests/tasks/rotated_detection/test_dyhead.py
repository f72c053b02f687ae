"""Dynamic Head: what it is without deformation, and that it fits any pyramid."""

import pytest
import torch
from torch.nn import functional as F

from vantage.tasks.rotated_detection.dyhead import DynamicHeadBlock, DyReLU
from vantage.tasks.rotated_detection.fpn import FPN


def rigid(num_levels, width=32):
    """A block whose offsets are 0 and masks 1, and whose convolutions have weights worth the name."""
    torch.manual_seed(0)
    block = DynamicHeadBlock(width, num_levels=num_levels)
    torch.nn.init.zeros_(block.offsets.weight)
    torch.nn.init.zeros_(block.offsets.bias)
    block.offsets.bias.data[18:] = 50.0
    torch.nn.init.normal_(block.to_weight.weight)
    for one in (block.own, block.finer, block.coarser):
        if one is not None:
            torch.nn.init.normal_(one.conv.weight, std=0.1)
    return block


def plain(part, x, stride=1):
    return F.group_norm(F.conv2d(x, part.conv.weight, part.conv.bias, stride=stride, padding=1), 16)


def test_without_deformation_it_is_convolutions_of_three_levels():
    block = rigid(3)
    levels = [torch.randn(2, 32, 12, 20), torch.randn(2, 32, 6, 10), torch.randn(2, 32, 3, 5)]
    up = F.interpolate(plain(block.coarser, levels[2]), size=(6, 10), mode="bilinear", align_corners=False)
    branches = [plain(block.own, levels[1]), plain(block.finer, levels[0], stride=2), up]
    total = torch.zeros_like(levels[1])
    for one in branches:
        scores = torch.einsum("bc,c->b", one.mean((2, 3)), block.to_weight.weight[0]) + block.to_weight.bias
        total += (F.relu6(scores.relu() + 3) / 6).view(-1, 1, 1, 1) * one / 3
    torch.testing.assert_close(block(levels)[1], block.activation(total), rtol=1e-4, atol=1e-5)


def test_one_level_has_no_neighbours():
    block = rigid(1)
    x = torch.randn(2, 32, 7, 9)
    expected = plain(block.own, x)
    weight = F.hardsigmoid(block.to_weight(expected.mean((2, 3))).relu())[..., None, None]
    torch.testing.assert_close(block([x])[0], block.activation(weight * expected), rtol=1e-4, atol=1e-5)


def test_dynamic_relu_with_even_numbers_is_relu():
    activation = DyReLU(8)
    torch.nn.init.zeros_(activation.numbers[2].weight)
    torch.nn.init.zeros_(activation.numbers[2].bias)
    x = torch.randn(2, 8, 5, 6)
    torch.testing.assert_close(activation(x), x.relu())


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
@pytest.mark.parametrize("extra_from", ["backbone", "level", "pool"])
@pytest.mark.parametrize(("backbone", "strides"), [((4, 8, 16), (4, 8, 16, 32)), ((16,), (4, 8, 16)), ((4, 8), (8,))])
def test_levels_keep_their_sizes_and_everything_has_a_gradient(size, extra_from, backbone, strides):
    def maps():
        return [torch.randn(2, 8, -(-size[0] // s), -(-size[1] // s)) for s in backbone]

    torch.manual_seed(0)
    options = {"strides": strides, "out_channels": 16, "extra_from": extra_from}
    plain_neck = FPN([8] * len(backbone), backbone, **options)
    neck = FPN([8] * len(backbone), backbone, **options, dyhead_blocks=2)
    levels = neck(maps())
    assert [level.shape for level in levels] == [level.shape for level in plain_neck(maps())]
    sum(level.square().sum() for level in levels).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in neck.parameters())


def test_half_precision_gives_float32_maps():
    block = DynamicHeadBlock(16, num_levels=2)
    with torch.autocast("cpu", torch.bfloat16):
        levels = block([torch.randn(1, 16, 8, 8).bfloat16(), torch.randn(1, 16, 4, 4).bfloat16()])
    assert all(level.dtype == torch.float32 and level.isfinite().all() for level in levels)

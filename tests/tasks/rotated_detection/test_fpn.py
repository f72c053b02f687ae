"""The pyramid over maps of many kinds: sizes, which maps take part, and what cannot be built."""

import pytest
import torch
from torch import nn

from vantage.tasks.rotated_detection.fpn import FPN


def maps(channels, strides, size):
    return [torch.randn(2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(channels, strides)]


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
@pytest.mark.parametrize("extra_from", ["backbone", "level", "pool"])
@pytest.mark.parametrize(
    ("backbone", "strides"),
    [
        ((4, 8, 16, 32), (4, 8, 16, 32, 64)),
        ((1, 1, 2, 4, 8), (4, 8, 16, 32)),
        ((4, 8), (4, 8)),
        ((4, 8, 16, 32), (8, 16)),
    ],
)
def test_every_level_has_its_size_and_every_parameter_a_gradient(size, extra_from, backbone, strides):
    channels = [8 * (i + 1) for i in range(len(backbone))]
    neck = FPN(channels, backbone, strides=strides, out_channels=16, extra_from=extra_from)
    levels = neck(maps(channels, backbone, size))
    assert [tuple(level.shape) for level in levels] == [(2, 16, -(-size[0] // s), -(-size[1] // s)) for s in strides]
    sum(level.square().sum() for level in levels).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in neck.parameters())


def test_one_map_of_a_plain_vit_becomes_finer_and_coarser_levels():
    neck = FPN([24], [16], strides=(4, 8, 16, 32), out_channels=8)
    assert [tuple(level.shape[-2:]) for level in neck(maps([24], [16], (64, 96)))] == [
        (16, 24),
        (8, 12),
        (4, 6),
        (2, 3),
    ]


def test_coarse_context_reaches_the_finest_level():
    torch.manual_seed(0)
    neck = FPN([4, 4], [4, 8], strides=(4, 8), out_channels=4)
    fine, coarse = maps([4, 4], [4, 8], (32, 32))
    changed = neck([fine, coarse + 1])[0] - neck([fine, coarse])[0]
    assert changed.abs().min() > 0 or changed.abs().mean() > 0.1


def test_of_two_maps_with_one_stride_the_deeper_is_used():
    neck = FPN([4, 6, 8], [1, 1, 2], strides=(1, 2), out_channels=4)
    assert [lateral.in_channels for lateral in neck.laterals if isinstance(lateral, nn.Conv2d)] == [6, 8]


def test_impossible_strides_are_refused():
    with pytest.raises(ValueError, match=r"detector strides \[4, 16\] are not each twice the one before"):
        FPN([8], [4], strides=(4, 16))
    with pytest.raises(ValueError, match=r"detector strides \[4, 8\] are none of the backbone's \[14\]; .* contain 14"):
        FPN([8], [14], strides=(4, 8))

"""Adaptive rotated convolution against PyTorch's own convolution and sampling."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vantage.plugs.adaptive_rotated_conv import AdaptiveRotatedConv, rotation

ANGLES = torch.linspace(-40, 40, 17).deg2rad()


def make(stride=1, dilation=1, **options):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    plug = AdaptiveRotatedConv(conv, **options).eval()
    for module in (plug.depthwise, plug.to_lambda, plug.to_theta):
        nn.init.normal_(module.weight)  # so that images differ in their kernels
    return plug


def test_rotation_is_bilinear_sampling_with_the_border_outside():
    kernels = torch.randn(len(ANGLES), 5, 3, 3, generator=torch.Generator().manual_seed(0))
    cos, sin, zero = ANGLES.cos(), ANGLES.sin(), torch.zeros_like(ANGLES)
    turn = torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], -2)
    grid = F.affine_grid(turn, list(kernels.shape), align_corners=True)
    expected = F.grid_sample(kernels, grid, padding_mode="border", align_corners=True)
    found = torch.einsum("bij,bcj->bci", rotation(ANGLES), kernels.flatten(2)).unflatten(-1, (3, 3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_rotation_of_the_release():
    """Two rows of its matrix for a positive angle: the upper left corner and the tap above the centre."""
    theta = torch.tensor(0.4)
    x, y = math.cos(0.4), math.sin(0.4)
    matrix = rotation(theta)
    torch.testing.assert_close(matrix[0], torch.tensor([x - y, 1 - x + y, 0, 0, 0, 0, 0, 0, 0]))
    above = [0, x * (1 - y), x * y, 0, (1 - x) * (1 - y), y * (1 - x), 0, 0, 0]
    torch.testing.assert_close(matrix[1], torch.tensor(above))
    torch.testing.assert_close(rotation(ANGLES).sum(-1), torch.ones(len(ANGLES), 9))
    torch.testing.assert_close(rotation(torch.zeros(())), torch.eye(9))


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_one_kernel_that_is_not_turned_is_a_convolution(stride, dilation):
    plug = make(stride, dilation, num_kernels=1)
    nn.init.zeros_(plug.to_theta.weight)
    nn.init.zeros_(plug.to_lambda.weight)
    nn.init.constant_(plug.to_lambda.bias, 40.0)
    x = torch.randn(3, 6, 9, 11)
    expected = F.conv2d(x, plug.weight[0], stride=stride, padding=dilation, dilation=dilation)
    torch.testing.assert_close(plug(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_batch_is_its_images_and_the_sum_of_turned_convolutions(stride):
    plug = make(stride)
    x = torch.randn(3, 6, 8, 10)
    out = plug(x)
    weights, theta = plug.route(x)
    assert theta.abs().max() < math.radians(40)
    assert theta.std() > 0.05
    for image in range(3):
        torch.testing.assert_close(plug(x[image : image + 1])[0], out[image], rtol=1e-4, atol=1e-4)
        total = torch.zeros_like(out[image])
        for number in range(4):
            turned = torch.einsum("ij,ocj->oci", rotation(theta[image, number]), plug.weight[number].flatten(2))
            one = F.conv2d(x[image], turned.unflatten(-1, (3, 3)), stride=stride, padding=1)
            total += weights[image, number] * one
        torch.testing.assert_close(total, out[image], rtol=1e-4, atol=1e-4)


def test_every_parameter_learns_also_in_half_precision():
    plug = make().train()
    with torch.autocast("cpu", torch.bfloat16):
        out = plug(torch.randn(2, 6, 8, 8))
    out.float().square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in plug.parameters())


def test_compiles_copies_and_pickles():
    plug = make()
    x = torch.randn(2, 6, 7, 9)
    torch._dynamo.reset()
    compiled = torch.compile(plug, backend="aot_eager", fullgraph=True)
    for twin in (compiled, copy.deepcopy(plug), pickle.loads(pickle.dumps(plug))):
        torch.testing.assert_close(twin(x), plug(x))


def test_other_convolutions_are_refused():
    with pytest.raises(ValueError, match=r"adaptive_rotated_conv: Conv2d\(6, 6, .* is no 3x3 convolution of one group"):
        AdaptiveRotatedConv(nn.Conv2d(6, 6, 3, groups=6, bias=False))
    with pytest.raises(ValueError, match=r"num_kernels is 0; use at least 1"):
        make(num_kernels=0)

"""Channel-spatial attention against loops over its 27 taps written out here, and the plug in a backbone."""

import copy
import itertools
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from vantage.backbones.build import build_backbone
from vantage.plugs.csam import CSAM, CSAMConv


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(gamma=0.7):
    module = CSAM()
    nn.init.constant_(module.gamma, gamma)
    return module


def written_out(module, x):
    """Sums over the taps of every place of (channel, row, column) that lie on the map."""
    logits = module.conv.bias.expand(x.shape)
    for taps in itertools.product(range(3), repeat=3):
        shifted = x
        for axis, tap in enumerate(taps, start=1):
            zeros = torch.zeros_like(shifted.narrow(axis, 0, 1))
            length = x.shape[axis]
            padded = torch.cat([zeros, shifted, zeros], axis)
            shifted = padded.narrow(axis, tap, length)
        logits = logits + module.conv.weight[0, 0][taps] * shifted
    return x + module.gamma * x / (1 + torch.exp(-logits))


@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (1, 1, 1, 1), (2, 3, 1, 4)])
def test_equals_the_equations(shape):
    module = build().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found, expected = module(x), written_out(module, x)
    torch.testing.assert_close(found, expected)
    leaves, cotangent = [x, *module.parameters()], torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(out, leaves, cotangent) for out in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_starts_as_the_identity_where_only_gamma_learns():
    module, x = CSAM(), torch.randn(2, 4, 5, 3)
    assert sum(parameter.numel() for parameter in module.parameters()) == 29
    out = module(x)
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert module.gamma.grad.abs() > 0
    assert torch.equal(module.conv.weight.grad, torch.zeros_like(module.conv.weight))
    assert torch.equal(module.conv.bias.grad, torch.zeros(1))


def test_gates_lie_between_shut_and_open():
    x = torch.randn(2, 4, 5, 3)
    shut, half, wide = (build(gamma=0.5) for _ in range(3))
    for module, bias in ((shut, -80.0), (half, 0.0), (wide, 80.0)):
        nn.init.zeros_(module.conv.weight)
        nn.init.constant_(module.conv.bias, bias)
    torch.testing.assert_close(shut(x), x)
    torch.testing.assert_close(half(x), 1.25 * x)
    torch.testing.assert_close(wide(x), 1.5 * x)


def test_half_precision_stays_half_precision():
    module, x = build(), torch.randn(2, 4, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), module(x), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "bias": False}, {"groups": 2, "dilation": 2}])
def test_the_plug_starts_as_the_convolution_it_replaces(options):
    conv = nn.Conv2d(4, 6, 3, padding=1, **options)
    plug, x = CSAMConv(conv), torch.randn(2, 4, 7, 9)
    assert torch.equal(plug(x), conv(x))
    nn.init.ones_(plug.csam.gamma)
    torch.testing.assert_close(plug(x), written_out(plug.csam, conv(x)))


def resnet(**options):
    torch.manual_seed(1)
    model = build_backbone("resnet", "resnet_pico32", **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm's zeros would shut the branches that the plugs are in
    return model


def test_a_plugged_resnet_starts_as_the_resnet_and_trains():
    plain, plugged, x = resnet(), resnet(plug=partial(CSAMConv)), torch.randn(2, 3, 33, 47)
    plugs = [module.csam for module in plugged.modules() if isinstance(module, CSAMConv)]
    assert plugs
    torch.testing.assert_close(plugged(x), plain(x))
    plugged(x).square().sum().backward()
    assert all(plug.gamma.grad.abs() > 0 for plug in plugs)
    assert all(parameter.grad is not None for parameter in plugged.parameters())
    for plug in plugs:
        nn.init.ones_(plug.gamma)
    assert not torch.allclose(plugged(x), plain(x))


def test_compiles_exports_copies_and_pickles():
    plug = CSAMConv(nn.Conv2d(4, 6, 3)).eval()
    nn.init.ones_(plug.csam.gamma)
    x = torch.randn(2, 4, 7, 9)
    torch._dynamo.reset()
    compiled = torch.compile(plug, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(plug, (x,)).module()
    for twin in (compiled, exported, copy.deepcopy(plug), pickle.loads(pickle.dumps(plug))):
        torch.testing.assert_close(twin(x), plug(x))

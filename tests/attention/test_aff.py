"""Adaptive frequency filter: a circular convolution with a kernel made from the map, an identity without a mask."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vantage.attention.aff import Aff

from .dense_reference import randomised
from .references.aff import transforms_and_complex_products

MAPS = [(1, 1), (1, 6), (5, 1), (4, 6), (5, 7), (6, 5)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(dim=8, num_heads=2, **keywords):
    return randomised(Aff(dim, num_heads, **{"num_blocks": 4} | keywords))


def image(height, width, batch=2, dim=8):
    return torch.randn(batch, height, width, dim, dtype=torch.float64)


def mask_of(module, x):
    """Channels last, as x."""
    return module.mask(torch.fft.rfft2(x.movedim(-1, 1), norm="ortho")).movedim(1, -1)


# a circular convolution


@pytest.mark.parametrize("hw", MAPS, ids=str)
def test_it_adds_a_circular_convolution_with_a_kernel_made_from_the_map(hw):
    module, x = build(), image(*hw)
    kernel = torch.fft.irfft2(mask_of(module, x), s=hw, dim=(1, 2))
    wanted = sum(
        kernel[:, y : y + 1, x_ : x_ + 1] * x.roll((y, x_), (1, 2)) for y, x_ in itertools.product(*map(range, hw))
    )
    torch.testing.assert_close(module(x) - x, wanted)


@pytest.mark.parametrize("hw", MAPS, ids=str)
def test_without_a_second_layer_it_is_the_identity(hw):
    module, x = build(), image(*hw)
    nn.init.zeros_(module.w2)
    nn.init.zeros_(module.b2)
    torch.testing.assert_close(module(x), x)


def test_a_threshold_above_the_mask_makes_it_the_identity():
    x = image(5, 6)
    assert not torch.allclose(build()(x), x, atol=0.1)
    torch.testing.assert_close(build(sparsity_threshold=1e6)(x), x)


@pytest.mark.parametrize("hw", [(4, 6), (5, 7)], ids=str)
def test_with_a_frozen_mask_it_moves_with_the_map_and_else_it_does_not(hw):
    module, x = build(), image(*hw)
    moved = x.roll((1, 2), (1, 2))
    assert not torch.allclose(module(moved), module(x).roll((1, 2), (1, 2)), atol=0.1)
    mask = mask_of(module, image(*hw))
    module.mask = lambda spectrum: mask.movedim(-1, 1)
    torch.testing.assert_close(module(moved), module(x).roll((1, 2), (1, 2)))


def test_the_mask_is_the_same_function_at_every_frequency():
    module = build()
    spectrum = torch.randn(2, 8, 5, 4, dtype=torch.complex128)
    order = torch.randperm(20)
    shuffled = spectrum.flatten(2)[..., order].view(spectrum.shape)
    wanted = module.mask(spectrum).flatten(2)[..., order].view(spectrum.shape)
    torch.testing.assert_close(module.mask(shuffled), wanted)


# blocks, start, sizes


@pytest.mark.parametrize(("dim", "blocks"), [(16, 8), (12, 4), (20, 4), (15, 1), (6, 2), (104, 8)])
def test_there_are_as_many_blocks_as_also_divide_the_channels(dim, blocks):
    module = Aff(dim, 1)
    assert module.num_blocks == blocks
    width = dim // blocks
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert shapes == dict.fromkeys(("w1", "w2"), (2, blocks, width, width)) | dict.fromkeys(
        ("b1", "b2"), (2, blocks, width)
    )
    assert module(torch.randn(1, 3, 4, dim)).shape == (1, 3, 4, dim)


def test_channels_of_different_blocks_do_not_meet():
    x = image(4, 5, batch=1).requires_grad_()
    (gradient,) = torch.autograd.grad(build()(x)[..., 2:4].square().sum(), x)
    assert gradient.abs().sum((0, 1, 2)).nonzero().flatten().tolist() == [2, 3]


def test_parameters_start_as_in_the_release():
    module = Aff(128, 1)
    assert (module.num_blocks, module.activation, module.sparsity_threshold) == (8, "relu", 0.01)
    for parameter in module.parameters():
        assert 0.016 < parameter.std() < 0.024
        assert parameter.mean().abs() < 0.004
    assert {name for name, _ in Aff(16, 1, qkv_bias=False).named_parameters()} == {"w1", "w2"}


def test_heads_change_nothing():
    one, two = build(num_heads=1), build(num_heads=2)
    two.load_state_dict(one.state_dict())
    x = image(4, 5)
    assert torch.equal(one(x), two(x))


@pytest.mark.parametrize("hw", MAPS, ids=str)
@pytest.mark.parametrize("num_blocks", [1, 8])
def test_flops_are_what_torch_counts_and_the_transforms(hw, num_blocks):
    module = Aff(24, 2, num_blocks=num_blocks)
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, *hw, 24))
    assert module.flops(*hw) == counter.get_total_flops() + transforms_and_complex_products(module, *hw)


def test_transforms_are_counted_as_five_n_log_n():
    """A 16 x 16 map: 2 real transforms per channel, each half of 5 * 256 * 8; 9 frequencies per row."""
    assert Aff(8, 1).flops(16, 16) == 2 * 8 * 5 * 256 * 8 // 2 + 2 * 4 * 2 * 16 * 9 * 8


# precision


def test_autocast_does_not_touch_the_spectrum():
    module = Aff(16, 4)
    x = torch.randn(2, 7, 5, 16)
    wanted = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(x), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_and_maps_are_computed_in_float32(dtype):
    module = Aff(16, 4)
    x = torch.randn(2, 7, 5, 16)
    wanted = module(x)
    got = module.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), wanted, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_blocks": 0}, "num_blocks 0 is no positive integer"),
        ({"activation": "tann"}, "activation 'tann' is unknown; use one of relu, gelu, silu"),
        ({"sparsity_threshold": -1}, "sparsity_threshold -1 is negative"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        Aff(8, 2, **keywords)

"""Rectangle windows: their two directions, and the properties of the paper; test_suite.py has the equations."""

import logging
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vantage.attention.base import log_once
from vantage.attention.rwin import Rwin

from .dense_reference import MAPS, allowed_pairs, assert_same_with_gradients, randomised
from .references.positions import heads_first, heads_last, positioned_weights
from .references.rwin import dense, directions, mlp_bias, reference


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(dim=12, num_heads=4, **keywords):
    return randomised(Rwin(dim, num_heads, **{"short_side": 2, "long_side": 3} | keywords))


def image(height, width, batch=2, dim=12):
    return torch.randn(batch, height, width, dim, dtype=torch.float64)


@pytest.mark.parametrize("shift", [0, "half"])
@pytest.mark.parametrize("sides", [(2, 3), (2, None)])
def test_attention_map_is_the_explicit_one(shift, sides):
    module = build(num_heads=3, short_side=sides[0], long_side=sides[1], shift=shift)
    x = image(5, 7)
    torch.testing.assert_close(module.attention_map(x), dense(module, x)[1])


@pytest.mark.parametrize("hw", MAPS)
@pytest.mark.parametrize("num_heads", [1, 2, 3])
def test_heads_that_are_no_multiple_of_four_equal_the_reference(hw, num_heads):
    """The first direction has one more of an odd number, and all of one."""
    module = build(num_heads=num_heads, shift="half")
    assert_same_with_gradients(module, partial(reference, module), *hw)


# the paper's properties


@torch.no_grad()
def without(module, *, bias=False, locality=False):
    """Takes away the MLP's bias or the depthwise convolution."""
    for direction in module.attns if bias else ():
        nn.init.zeros_(direction.pos.pos3[2].weight)
    if locality:
        nn.init.zeros_(module.get_v.weight)
        nn.init.zeros_(module.get_v.bias)
    return module


@pytest.mark.parametrize("sides", [(9, 9), (9, 16), (9, None)])
def test_rectangles_over_the_map_without_bias_are_global_attention_of_each_half(sides):
    module = without(build(short_side=sides[0], long_side=sides[1]), bias=True, locality=True)
    x = image(9, 5)
    q, k, v = (t.unflatten(-1, (4, 3)).transpose(1, 2) for t in module.qkv(x).flatten(1, 2).chunk(3, -1))
    halves = [F.scaled_dot_product_attention(q[:, h], k[:, h], v[:, h]) for h in (slice(0, 2), slice(2, 4))]
    wanted = torch.cat(halves, 1).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), module.proj(wanted))


@pytest.mark.parametrize(
    ("sides", "first", "second"),
    [
        ((2, 4), (slice(2, 4), slice(4, 8)), (slice(0, 4), slice(4, 6))),
        ((2, None), (slice(0, 8), slice(4, 6)), (slice(2, 4), slice(0, 12))),
    ],
)
def test_without_shift_each_half_stays_in_its_rectangle(sides, first, second):
    """Of the pixel at (2, 5) on an 8 x 12 map."""
    module = build(short_side=sides[0], long_side=sides[1])
    weights = module.attention_map(image(8, 12, batch=1))[0, :, 2 * 12 + 5].unflatten(-1, (8, 12))
    for half, box in enumerate((first, second)):
        seen = torch.zeros(8, 12, dtype=torch.bool)
        seen[box] = True
        assert torch.equal(weights[2 * half : 2 * half + 2] > 0, seen.expand(2, -1, -1))


@pytest.mark.parametrize("sides", [(2, 4), (4, None)])
def test_a_shifted_layer_is_masked_attention_on_the_rolled_map(sides):
    """On a map that rectangles divide: roll by half a side, keep apart what the roll made neighbours, roll back."""
    shifted = without(build(short_side=sides[0], long_side=sides[1], shift="half"), locality=True)
    x = image(8, 12)
    mixed = []
    for half, (_, shape) in enumerate(directions(4, *sides)):
        by = [0 if side is None else side // 2 for side in shape]
        sizes = [side or length for side, length in zip(shape, (8, 12))]

        def together(query, key, by=by, sizes=sizes):
            rectangle = all(q // size == k // size for q, k, size in zip(query, key, sizes))
            wrapped = [[p >= length - b for p, b, length in zip(place, by, (8, 12))] for place in (query, key)]
            return rectangle and wrapped[0] == wrapped[1]

        rolled = x.roll([-b for b in by], dims=(1, 2))
        bias = mlp_bias(shifted.attns[half], 8, 12).repeat(2, 1, 1)  # of this half for all four heads
        q, k, v = heads_first(rolled, shifted.qkv, 4, 3)
        weights = positioned_weights(q, k, None, 8, 12, allowed_pairs(8, 12, together), extent=None, extra=bias)
        out = heads_last(weights @ v, x.shape)
        mixed.append(out.roll(by, dims=(1, 2))[..., 6 * half : 6 * half + 6])
    torch.testing.assert_close(shifted(x), shifted.proj(torch.cat(mixed, -1)))


@pytest.mark.parametrize("shift", [0, "half"])
@pytest.mark.parametrize("sides", [(2, 3), (2, None)])
def test_lying_rectangles_are_standing_ones_of_the_transposed_map(shift, sides):
    module, turned = (build(short_side=sides[0], long_side=sides[1], shift=shift) for _ in range(2))
    swap = torch.arange(12).roll(6)  # the other half's channels
    with torch.no_grad():
        rows = torch.cat([swap, swap + 12, swap + 24])
        turned.qkv.weight.copy_(module.qkv.weight[rows])
        turned.qkv.bias.copy_(module.qkv.bias[rows])
        turned.proj.weight.copy_(module.proj.weight[:, swap])
        turned.proj.bias.copy_(module.proj.bias)
        turned.get_v.weight.copy_(module.get_v.weight[swap].mT)
        turned.get_v.bias.copy_(module.get_v.bias[swap])
        for own, other in zip(turned.attns, reversed(module.attns)):
            own.load_state_dict(other.state_dict())
            own.pos.pos_proj.weight.copy_(other.pos.pos_proj.weight.flip(1))
    x = image(5, 7)
    torch.testing.assert_close(turned(x.transpose(1, 2)).transpose(1, 2), module(x))
    assert not torch.allclose(module(x.transpose(1, 2)).transpose(1, 2), module(x), atol=1e-3)


def test_two_shifted_layers_connect_what_plain_ones_keep_apart():
    plain, shifted = (without(build(short_side=2, long_side=4, shift=s), locality=True) for s in (0, "half"))
    x = image(8, 8, batch=1).requires_grad_()

    def reach(*layers):
        out = x
        for layer in layers:
            out = layer(out)
        return torch.autograd.grad(out[0, 3, 3].sum(), x)[0].abs().sum(-1)[0] > 0

    quarters = [(rows, columns) for rows in (slice(0, 4), slice(4, 8)) for columns in (slice(0, 4), slice(4, 8))]
    assert [bool(reach(plain, plain)[quarter].any()) for quarter in quarters] == [True, False, False, False]
    assert all(reach(plain, shifted)[quarter].any() for quarter in quarters)


def test_axial_rectangles_reach_the_far_border():
    module = without(build(short_side=2, long_side=None), locality=True)
    x = image(21, 34, batch=1).requires_grad_()
    (gradient,) = torch.autograd.grad(module(x)[0, 0, 0].sum(), x)
    assert gradient[0, -1, 0].any()
    assert gradient[0, 0, -1].any()
    assert not gradient[0, 2:, 2:].any()


def test_the_convolution_sees_v_across_rectangles():
    module = build(short_side=1, long_side=1)
    x = image(5, 5, batch=1).requires_grad_()
    (gradient,) = torch.autograd.grad(module(x)[0, 2, 2].sum(), x)
    assert torch.equal(gradient[0].any(-1), F.pad(torch.ones(3, 3), (1, 1, 1, 1)) > 0)


# the rest of the contract


def test_clamp_logs_each_direction_once_or_raises(caplog):
    log_once.cache_clear()
    module = build(short_side=2, long_side=9)
    with caplog.at_level(logging.INFO, logger="vantage"):
        for _ in range(3):
            module(image(4, 20))
    (record,) = caplog.records
    assert record.getMessage() == "rwin: rectangles of (9, 2) (y, x) are clamped to (4, 2) on the 4x20 map"
    wanted = r"rectangles of \(9, 2\) .* do not fit the 4x20 map .* sides of at most 4 as attention.short_side"
    with pytest.raises(ValueError, match=wanted):
        build(short_side=2, long_side=9, clamp=False)(image(4, 20))
    build(short_side=2, long_side=None, clamp=False)(image(4, 20))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"short_side": 0}, "attention.short_side=0; use an integer of at least 1$"),
        ({"short_side": None}, "attention.short_side=None; use an integer of at least 1$"),
        ({"short_side": [2, 4]}, r"attention.short_side=\[2, 4\]"),
        ({"long_side": 2.5}, "attention.long_side=2.5; use an integer of at least 1, or null"),
        ({"long_side": True}, "attention.long_side=True"),
        ({"shift": 3}, "attention.shift=3; use 0 or half"),
        ({"shift": "quarter"}, "attention.shift='quarter'; use 0 or half"),
    ],
)
def test_bad_values_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        Rwin(12, 4, **keywords)


def test_first_call_in_inference_mode_leaves_training_possible():
    module = build(short_side=3, long_side=4, shift="half")
    x = image(11, 13)
    with torch.inference_mode():
        module(x)
    module(x).sum().backward()
    assert module.qkv.weight.grad.isfinite().all()

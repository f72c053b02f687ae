"""LRSA: multi-head attention where one window covers the map, exact averages; test_suite.py has the equations."""

import logging

import pytest
import torch
from torch import nn

from vantage.attention.base import log_once
from vantage.attention.lrsa import Lrsa, merge
from vantage.attention.window import Window

from .dense_reference import MAPS, randomised
from .references.lrsa import dense


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(dim=12, num_heads=3, **keywords):
    return randomised(Lrsa(dim, num_heads, **{"window_size": 4} | keywords))


def image(height, width, batch=2, dim=12):
    return torch.randn(batch, height, width, dim, dtype=torch.float64)


@pytest.mark.parametrize("hw", [*MAPS, (11, 8)])
@pytest.mark.parametrize("keywords", [{}, {"window_size": (5, 3), "overlap": 1}, {"overlap": 3, "qk_dim": 6}], ids=str)
def test_attention_map_is_the_explicit_one(hw, keywords):
    module, x = build(**keywords), image(*hw)
    torch.testing.assert_close(module.attention_map(x), dense(module, x)[0])


# averages


@pytest.mark.parametrize("hw", [(4, 4), (6, 6), (7, 7), (13, 5), (9, 30), (3, 21), (1, 1)])
@pytest.mark.parametrize(("window_size", "overlap"), [(4, 2), (6, 2), (4, 3), (5, 0), (16, 2)])
def test_an_inner_block_that_is_the_identity_gives_the_input_back_exactly(hw, window_size, overlap):
    module = build(window_size=window_size, overlap=overlap)
    x = image(*hw).mul(100).round()  # whole numbers: no sum is rounded
    rows, columns, shared = module.windows(*hw, x.device)
    assert torch.equal(merge(module.split(x, rows, columns), rows, columns, *hw) / shared, x)


def test_a_last_window_one_pixel_on_leaves_a_pixel_in_three():
    rows, _, shared = build().windows(7, 4, torch.device("cpu"))
    assert rows.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [3, 4, 5, 6]]
    assert shared[:, 0, 0].tolist() == [1, 1, 2, 3, 2, 2, 1]


def test_windows_are_those_of_the_paper():
    """16, step 14, on 64 pixels: the last one moves back to the border."""
    rows, columns, _ = Lrsa(8, 2).windows(64, 30, torch.device("cpu"))
    assert rows[:, 0].tolist() == [0, 14, 28, 42, 48]
    assert columns[:, 0].tolist() == [0, 14]


# what it is at special sizes


@pytest.mark.parametrize("hw", [(5, 5), (4, 3), (1, 5)])
def test_one_window_over_the_map_is_multihead_attention(hw):
    module = build(window_size=5)
    oracle = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    layers = (module.to_q, module.to_k, module.to_v)
    oracle.load_state_dict(
        {
            "in_proj_weight": torch.cat([layer.weight for layer in layers]),
            "in_proj_bias": torch.cat([layer.bias for layer in layers]),
            "out_proj.weight": module.proj.weight,
            "out_proj.bias": torch.zeros(12),
        }
    )
    x = image(*hw)
    tokens = x.flatten(1, 2)
    torch.testing.assert_close(module(x).flatten(1, 2), oracle(tokens, tokens, tokens, need_weights=False)[0])


def test_without_overlap_it_is_window_attention():
    module, window = build(overlap=0), Window(12, 3, window_size=4).double()
    layers = (module.to_q, module.to_k, module.to_v)
    with torch.no_grad():
        window.qkv.weight.copy_(torch.cat([layer.weight for layer in layers]))
        window.qkv.bias.copy_(torch.cat([layer.bias for layer in layers]))
        window.proj.weight.copy_(module.proj.weight)
        window.proj.bias.zero_()
    x = image(8, 12)
    torch.testing.assert_close(module(x), window(x))


@pytest.mark.parametrize("hw", [(3, 40), (40, 3), (15, 15), (17, 9)])
def test_no_pixel_of_a_side_shorter_than_the_window_is_lost(hw):
    """Every pixel is changed by the mixer, and reaches one that has it in its window."""
    module, x = build(window_size=16), image(*hw, batch=1).requires_grad_()
    out = module(x)
    assert (out.abs().amax(-1) > 0).all()
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert (gradient.abs().amax(-1) > 0).all()


def test_a_pixel_sees_the_windows_that_hold_it_and_nothing_else():
    module, x = build(), image(10, 4, batch=1).requires_grad_()
    out = module(x)
    for row, seen in [(1, range(4)), (2, range(6)), (5, range(2, 8)), (9, range(6, 10))]:
        (gradient,) = torch.autograd.grad(out[0, row, 1].sum(), x, retain_graph=True)
        assert gradient[0, :, 0].abs().sum(-1).nonzero().flatten().tolist() == list(seen)


# the rest of the contract


@pytest.mark.parametrize("hw", [(9, 13), (7, 4)])
def test_compile_and_export_with_several_windows(hw):
    torch._dynamo.reset()
    module, x = build(), image(*hw)
    wanted, got = module(x), torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, wanted)
    ours, theirs = (torch.autograd.grad(out.square().sum(), list(module.parameters())) for out in (got, wanted))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.export.export(module.eval(), (x,)).module()(x), wanted)


def test_autocast_averages_near_float32():
    module, x = build().float(), image(9, 13).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert (out.float() - module(x)).abs().max() < 0.02 * module(x).abs().max()


def test_names_and_biases_are_those_of_the_release():
    shapes = {name: tuple(p.shape) for name, p in Lrsa(40, 4, qk_dim=36, qkv_bias=False).named_parameters()}
    assert shapes == {
        "to_q.weight": (36, 40),
        "to_k.weight": (36, 40),
        "to_v.weight": (40, 40),
        "proj.weight": (40, 40),
    }
    assert {name for name, _ in Lrsa(40, 4).named_parameters()} - set(shapes) == {"to_q.bias", "to_k.bias", "to_v.bias"}


def test_clamp_logs_once_or_raises(caplog):
    log_once.cache_clear()
    module = Lrsa(12, 3, window_size=9)
    with caplog.at_level(logging.INFO, logger="vantage"):
        for _ in range(3):
            module(torch.randn(1, 4, 20, 12))
    (record,) = caplog.records
    assert record.getMessage() == "lrsa: window_size (9, 9) is clamped to (4, 9) on the 4x20 map"
    with pytest.raises(ValueError, match=r"window_size \(9, 9\) does not fit the 4x20 map.*attention.window_size=4"):
        Lrsa(12, 3, window_size=9, clamp=False)(torch.randn(1, 4, 20, 12))
    Lrsa(12, 3, window_size=4, clamp=False)(torch.randn(1, 4, 20, 12))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"window_size": 0}, r"attention\.window_size=0"),
        ({"overlap": -1}, r"attention\.overlap=-1 leaves pixels between windows"),
        ({"qk_dim": 8}, r"attention\.qk_dim=8 is not a multiple of num_heads 3"),
        ({"qk_dim": 0}, r"attention\.qk_dim=0"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        Lrsa(12, 3, **keywords)

"""HiLo against torch's own multi-head attention, and the paper's properties; test_suite.py has the equations."""

import logging

import pytest
import torch
from torch import nn

from vantage.attention.hilo import Hilo

from .references.hilo import dense, window_of_pixel

MAPS = [(1, 1), (1, 5), (5, 1), (2, 3), (6, 4), (7, 10)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(dim=12, num_heads=4, **keywords):
    module = Hilo(dim, num_heads, **keywords).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize(
    "keywords", [{"alpha": 0.5}, {"alpha": 0.0, "window_size": 4}, {"alpha": 1.0, "window_size": 3}], ids=str
)
def test_attention_map_is_the_explicit_one(keywords, size):
    module = build(**keywords)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    torch.testing.assert_close(module.attention_map(x), dense(module, x)[1])


def multihead(qkv_weight, qkv_bias, proj, num_heads):
    """torch's multi-head attention with the given weights, as a function of a map."""
    oracle = nn.MultiheadAttention(proj.in_features, num_heads, batch_first=True, dtype=torch.float64)
    state = {"in_proj_weight": qkv_weight, "in_proj_bias": qkv_bias}
    oracle.load_state_dict(state | {f"out_proj.{key}": value for key, value in proj.state_dict().items()})

    def run(x):
        tokens = x.flatten(1, 2)
        return oracle(tokens, tokens, tokens, need_weights=False)[0].view(x.shape)

    return run


def low_multihead(module):
    weight, bias = (
        torch.cat([getattr(layer, name) for layer in (module.l_q, module.l_kv)]) for name in ("weight", "bias")
    )
    return multihead(weight, bias, module.l_proj, module.num_heads)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_window_of_one_pixel_is_multihead_attention(alpha):
    module = build(window_size=1, alpha=alpha)
    x = torch.randn(2, 5, 3, 12, dtype=torch.float64)
    torch.testing.assert_close(module(x), low_multihead(module)(x))


@pytest.mark.parametrize("window_size", [5, 8])
def test_window_over_the_map_without_low_heads_is_multihead_attention(window_size):
    module = build(window_size=window_size, alpha=0.0)
    x = torch.randn(2, 5, 3, 12, dtype=torch.float64)
    oracle = multihead(module.h_qkv.weight, module.h_qkv.bias, module.h_proj, 4)
    torch.testing.assert_close(module(x), oracle(x))


def test_without_low_heads_nothing_leaks_between_windows():
    module, size = build(alpha=0.0, window_size=3), (7, 5)
    owner = window_of_pixel(*size, 3).view(size)
    x = torch.randn(1, *size, 12, dtype=torch.float64, requires_grad=True)
    out = module(x)
    for y, x_ in [(0, 0), (2, 2), (3, 2), (4, 4), (6, 1), (6, 4)]:
        (gradient,) = torch.autograd.grad(out[0, y, x_].sum(), x, retain_graph=True)
        assert torch.equal(gradient[0].abs().sum(dim=-1) > 0, owner == owner[y, x_])


def test_low_heads_of_a_map_constant_in_every_window_see_all_pixels():
    module = build(alpha=1.0, window_size=3)
    x = torch.randn(2, 2, 3, 12, dtype=torch.float64).repeat_interleave(3, 1).repeat_interleave(3, 2)
    torch.testing.assert_close(module(x), low_multihead(module)(x))


def test_border_averages_count_real_pixels_only():
    module = build(alpha=1.0, window_size=4)
    out = module(torch.randn(12, dtype=torch.float64).expand(1, 5, 6, 12))
    torch.testing.assert_close(out, out[:, :1, :1].expand_as(out))


@pytest.mark.parametrize(
    ("num_heads", "alpha", "window_size", "low_heads"),
    [
        (4, 0.9, 2, 3),
        (1, 0.9, 2, 0),
        (1, 1.0, 2, 1),
        (2, 0.5, 2, 1),
        (4, 0.0, 2, 0),
        (4, 0.0, 1, 4),
        (100, 0.29, 2, 29),
    ],
)
def test_heads_are_split_by_alpha(num_heads, alpha, window_size, low_heads):
    module = Hilo(num_heads * 2, num_heads, alpha=alpha, window_size=window_size)
    assert (module.high_heads, module.low_heads) == (num_heads - low_heads, low_heads)
    assert hasattr(module, "h_qkv") == (low_heads < num_heads)
    assert hasattr(module, "l_kv") == (low_heads > 0)
    assert module(torch.randn(1, 3, 5, num_heads * 2)).shape == (1, 3, 5, num_heads * 2)


def test_a_share_too_small_for_one_low_head_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        Hilo(8, 2, alpha=0.49)
        Hilo(8, 2, alpha=0.0)
    assert [record.getMessage() for record in caplog.records] == [
        "hilo: attention.alpha=0.49 of 2 heads leaves no low-frequency head, tokens see their window only"
    ]


def test_defaults_are_the_papers():
    module = Hilo(20, 10)
    assert (module.window_size, module.low_heads, module.high_heads) == (2, 9, 1)
    biases = {name for name, _ in module.named_parameters() if name.endswith("bias")}
    assert biases == {"h_qkv.bias", "h_proj.bias", "l_q.bias", "l_kv.bias", "l_proj.bias"}
    without = {name for name, _ in Hilo(20, 10, qkv_bias=False).named_parameters() if name.endswith("bias")}
    assert without == {"h_proj.bias", "l_proj.bias"}


def test_clamp_is_logged_once_or_refused(caplog):
    x = torch.randn(1, 3, 9, 8)
    module = Hilo(8, 2, window_size=4)
    with caplog.at_level(logging.INFO):
        module(x)
        module(x)
    assert [record.getMessage() for record in caplog.records] == ["hilo: window_size 4 is clamped to the 3x9 map"]
    with pytest.raises(
        ValueError, match=r"does not fit the 3x9 map .* use attention\.window_size=3 or attention\.clamp=true"
    ):
        Hilo(8, 2, window_size=4, clamp=False)(x)
    Hilo(8, 2, window_size=3, clamp=False)(x)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"window_size": 0}, "window_size 0"),
        ({"window_size": 2.5}, r"window_size 2\.5"),
        ({"alpha": 1.5}, r"alpha 1\.5"),
        ({"alpha": -0.1}, r"alpha -0\.1"),
        ({"num_heads": 3}, "dim 8 is not a multiple of num_heads 3"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        Hilo(8, **{"num_heads": 2} | keywords)

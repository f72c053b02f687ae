"""Agent attention: its two softmaxes and its tables, and the paper's properties; test_suite.py has the equations."""

import pytest
import torch
from torch import nn

from vantage.attention.agent import Agent

from .references.agent import dense

MAPS = [(1, 1), (1, 5), (5, 1), (3, 4), (7, 10), (9, 2)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(dim=12, num_heads=3, **keywords):
    module = Agent(dim, num_heads, **{"agent_num": 4, "table_size": 6} | keywords).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.mark.parametrize("size", MAPS)
def test_attention_map_is_the_explicit_matrix(size):
    module = build()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    torch.testing.assert_close(module.attention_map(x), dense(module, x)[1])


@pytest.mark.parametrize("size", MAPS)
def test_both_softmaxes_and_their_product_sum_to_one(size):
    module = build()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    gather, read = module.weights(*module.qkv(x).chunk(3, dim=-1)[:2])
    count = size[0] * size[1]
    assert gather.shape == (2, 3, 4, count)
    assert read.shape == (2, 3, count, 4)
    for weights in (gather, read, module.attention_map(x)):
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))


def without_convolution(module):
    """Only O is left: no depthwise convolution, and a projection that does nothing."""
    nn.init.zeros_(module.dwc.weight)
    nn.init.zeros_(module.dwc.bias)
    nn.init.eye_(module.proj.weight)
    nn.init.zeros_(module.proj.bias)
    return module


def test_without_the_convolution_the_output_lies_among_the_values():
    module = without_convolution(build())
    x = torch.randn(2, 5, 7, 12, dtype=torch.float64)
    v = module.qkv(x)[..., 24:].flatten(1, 2)
    out = module(x).flatten(1, 2)
    assert (out <= v.amax(dim=1, keepdim=True)).all()
    assert (out >= v.amin(dim=1, keepdim=True)).all()


def test_constant_values_come_out_as_they_are():
    module = without_convolution(build())
    nn.init.zeros_(module.qkv.weight[24:])
    out = module(torch.randn(2, 5, 7, 12, dtype=torch.float64))
    torch.testing.assert_close(out, module.qkv.bias[24:].expand_as(out))


def test_tables_are_used_as_they_are_on_a_map_of_their_size():
    module = build(table_size=7)
    gather = (module.an_bias + module.ah_bias[0] + module.aw_bias[0]).flatten(2)
    read = module.na_bias.permute(0, 2, 3, 1) + module.ha_bias[0] + module.wa_bias[0]
    torch.testing.assert_close(module.gather_bias(7, 7), gather)
    torch.testing.assert_close(module.read_bias(7, 7), read.flatten(1, 2))


def test_defaults_are_the_papers():
    module = Agent(64, 8)
    assert (module.agent_num, module.table_size) == (49, (14, 14))
    assert module.qkv.bias is not None
    assert Agent(64, 8, qkv_bias=False).qkv.bias is None


def test_tables_start_small_and_random():
    module = Agent(64, 8)
    for name in ("an", "ah", "aw", "na", "ha", "wa"):
        assert 0.018 < getattr(module, f"{name}_bias").std().item() < 0.022


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"agent_num": 50}, "agent_num 50 is not a square"),
        ({"agent_num": 0}, "agent_num 0"),
        ({"table_size": 0}, "table_size=0"),
        ({"table_size": (7, 7, 7)}, r"table_size=\(7, 7, 7\)"),
        ({"num_heads": 3}, "dim 8 is not a multiple of num_heads 3"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        Agent(8, **{"num_heads": 2} | keywords)


def test_attention_dropout_acts_on_both_softmaxes():
    module = Agent(8, 2, agent_num=9, attn_drop=0.5)
    dropped = []
    module.attn_drop.register_forward_hook(lambda _, args, out: dropped.append(out.shape))
    module(torch.randn(1, 4, 5, 8))
    assert dropped == [(1, 2, 9, 20), (1, 2, 20, 9)]


def test_autocast_leaves_the_softmaxes_in_float32():
    module = Agent(16, 4, agent_num=9)
    x = torch.randn(2, 7, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        q, k, _ = module.qkv(x).chunk(3, dim=-1)
        assert q.dtype == torch.bfloat16
        assert all(t.dtype == torch.float32 for t in module.weights(q, k))
        assert module(x).dtype == torch.bfloat16

"""Agent attention against its explicit N x N matrix, the paper's properties, and bias tables interpolated by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vantage.attention.agent import Agent

MAPS = [(1, 1), (1, 5), (5, 1), (3, 4), (7, 10), (9, 2)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(dim=12, num_heads=3, **keywords):
    module = Agent(dim, num_heads, **{"agent_num": 4, "table_size": 6} | keywords).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def pooling(length, bins):
    """(bins, length): rows that average the pixels floor(i L / p) to ceil((i + 1) L / p)."""
    rows = torch.zeros(bins, length, dtype=torch.float64)
    for i in range(bins):
        start, stop = math.floor(i * length / bins), math.ceil((i + 1) * length / bins)
        rows[i, start:stop] = 1 / (stop - start)
    return rows


def interpolation(length, table):
    """(length, table): linear interpolation between the table's cell centres, constant beyond the outer ones."""
    rows = torch.zeros(length, table, dtype=torch.float64)
    for i in range(length):
        centre = min(max((i + 0.5) * table / length - 0.5, 0), table - 1)
        low = min(int(centre), max(table - 2, 0))
        rows[i, low] += 1 - (centre - low)
        rows[i, min(low + 1, table - 1)] += centre - low
    return rows


def biases(module, height, width):
    """B1 (heads, n, N) and B2 (heads, N, n)."""
    y7, x7 = interpolation(height, 7), interpolation(width, 7)
    y, x = interpolation(height, module.table_size[0]), interpolation(width, module.table_size[1])
    gather = torch.einsum("hars,yr,xs->hayx", module.an_bias, y7, x7)
    gather = gather + torch.einsum("har,yr->hay", module.ah_bias[0, :, :, :, 0], y)[..., None]
    gather = gather + torch.einsum("has,xs->hax", module.aw_bias[0, :, :, 0, :], x)[..., None, :]
    read = torch.einsum("hars,yr,xs->hyxa", module.na_bias, y7, x7)
    read = read + torch.einsum("hra,yr->hya", module.ha_bias[0, :, :, 0, :], y)[:, :, None]
    read = read + torch.einsum("hsa,xs->hxa", module.wa_bias[0, :, 0, :, :], x)[:, None]
    return gather.flatten(2), read.flatten(1, 2)


def dense(module, x):
    """The output and the (B, heads, N, N) matrix over pixels, from the equations."""
    batch, height, width, dim = x.shape
    heads, head_dim = module.num_heads, dim // module.num_heads
    q, k, v = module.qkv(x).chunk(3, dim=-1)
    side = math.isqrt(module.agent_num)
    agents = torch.einsum("byxc,py,qx->bpqc", q, pooling(height, side), pooling(width, side))
    q, k, per_head, agents = (t.reshape(batch, -1, heads, head_dim).transpose(1, 2) for t in (q, k, v, agents))
    gather_bias, read_bias = biases(module, height, width)
    gather = (agents @ k.transpose(-2, -1) / math.sqrt(head_dim) + gather_bias).softmax(dim=-1)
    read = (q @ agents.transpose(-2, -1) / math.sqrt(head_dim) + read_bias).softmax(dim=-1)
    matrix = read @ gather
    out = (matrix @ per_head).transpose(1, 2).reshape(x.shape)
    padded = F.pad(v, (0, 0, 1, 1, 1, 1))
    for dy in range(3):
        for dx in range(3):
            out = out + padded[:, dy : dy + height, dx : dx + width] * module.dwc.weight[:, 0, dy, dx]
    return module.proj(out + module.dwc.bias), matrix


def gradients(module, x, out):
    torch.manual_seed(7)
    return torch.autograd.grad((out * torch.randn_like(out)).sum(), [x, *module.parameters()])


@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize(
    "keywords",
    [{}, {"agent_num": 9, "table_size": (3, 8)}, {"num_heads": 1, "agent_num": 1, "table_size": 1, "qkv_bias": False}],
    ids=str,
)
def test_equals_the_explicit_matrix(keywords, size):
    module = build(**keywords)
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    out, (expected, matrix) = module(x), dense(module, x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(module.attention_map(x), matrix)
    for own, reference in zip(gradients(module, x, out), gradients(module, x, expected)):
        torch.testing.assert_close(own, reference)


@pytest.mark.parametrize("num_heads", [1, 3])
def test_every_parameter_gets_a_gradient(num_heads):
    module = build(num_heads=num_heads)
    x = torch.randn(1, 7, 10, 12, dtype=torch.float64, requires_grad=True)
    assert all(gradient.count_nonzero() for gradient in gradients(module, x, module(x)))


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


class Allocations(TorchDispatchMode):
    """Counts the elements of all results."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements += out.numel() if isinstance(out, torch.Tensor) else 0
        return out


def test_memory_and_arithmetic_are_linear_in_the_tokens():
    module = Agent(16, 2, agent_num=9, table_size=4)
    elements = []
    for height in (32, 64, 128):
        with Allocations() as counted, torch.no_grad():
            module(torch.randn(1, height, 16, 16))
        elements.append(counted.elements)
    assert elements[2] - elements[1] == 2 * (elements[1] - elements[0])
    assert module.flops(128, 16) == 4 * module.flops(32, 16)


@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize("num_heads", [1, 3])
def test_flops_are_what_torch_counts(size, num_heads):
    module = Agent(24, num_heads, agent_num=9)
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, *size, 24))
    assert module.flops(*size) == counter.get_total_flops()


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


def test_dropout_acts_in_training_only():
    x = torch.randn(1, 4, 4, 8)
    for keywords in ({"attn_drop": 0.5}, {"proj_drop": 0.5}):
        module = Agent(8, 2, agent_num=9, **keywords)
        assert not torch.equal(module(x), module(x))
        module.eval()
        assert torch.equal(module(x), module(x))


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

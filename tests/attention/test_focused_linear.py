"""Focused linear attention against its explicit N x N matrix, and the properties of the focused map."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vantage.attention.focused_linear import FocusedLinear, focus

from .references.focused_linear import dense

MAPS = [(1, 1), (1, 5), (5, 1), (3, 4), (7, 10), (6, 6)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(dim=12, num_heads=3, **keywords):
    module = FocusedLinear(dim, num_heads, **{"table_size": 6} | keywords).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def gradients(module, x, out):
    torch.manual_seed(7)
    return torch.autograd.grad((out * torch.randn_like(out)).sum(), [x, *module.parameters()])


@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"focusing_factor": 4.5, "kernel_size": 3, "table_size": (3, 8)},
        {"focusing_factor": 1, "kernel_size": 1, "num_heads": 1, "table_size": 1, "qkv_bias": False},
    ],
    ids=str,
)
def test_equals_the_explicit_matrix(keywords, size):
    module = build(**keywords)
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    out, (expected, weights) = module(x), dense(module, x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(module.attention_map(x), weights)
    for own, reference in zip(gradients(module, x, out), gradients(module, x, expected)):
        torch.testing.assert_close(own, reference)


@pytest.mark.parametrize("num_heads", [1, 3])
def test_every_parameter_gets_a_gradient(num_heads):
    module = FocusedLinear(12, num_heads).double()
    x = torch.randn(1, 7, 10, 12, dtype=torch.float64, requires_grad=True)
    assert all(gradient.count_nonzero() for gradient in gradients(module, x, module(x)))


@pytest.mark.parametrize("power", [1, 2, 3, 8, 32])
def test_focus_keeps_the_norm_and_the_order(power):
    x = torch.rand(4, 9, dtype=torch.float64) + 0.1
    out = focus(x, power)
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(out.argsort(dim=-1), x.argsort(dim=-1))
    torch.testing.assert_close(focus(x, power, 0.25), out / 4)


def test_focus_of_power_one_is_the_identity():
    x = torch.rand(4, 9, dtype=torch.float64) + 0.1
    torch.testing.assert_close(focus(x, 1), x)


def test_focus_sharpens():
    x = torch.rand(4, 9, dtype=torch.float64) + 0.1
    share = [(focus(x, power).amax(dim=-1) / x.norm(dim=-1)).min() for power in (1, 2, 3, 8)]
    assert share == sorted(share)
    assert share[0] < share[-1]


@pytest.mark.parametrize("power", [3, 32])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-6, 1e6, 1e30])
def test_focus_neither_overflows_nor_underflows_in_float32(power, magnitude):
    x = (torch.rand(4, 9) + 0.1) * magnitude
    x.requires_grad_()
    out = focus(x, power)
    torch.testing.assert_close(out.double(), focus(x.double(), power), rtol=1e-4, atol=1e-6 * magnitude)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.isfinite().all()


def test_tokens_without_positive_entries_stay_finite():
    module = FocusedLinear(12, 3, focusing_factor=32)
    nn.init.zeros_(module.qkv.weight)
    nn.init.constant_(module.qkv.bias, -1.0)
    nn.init.constant_(module.scale, 40.0)
    out = module(torch.randn(1, 4, 5, 12))
    out.sum().backward()
    assert out.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    assert module.attention_map(torch.randn(1, 4, 5, 12)).isfinite().all()


def without_position(module):
    """Neither convolution nor table, and a projection that does nothing: only the weighted sum is left."""
    for parameter in (module.dwc.weight, module.dwc.bias, module.positional_encoding, module.proj.bias):
        nn.init.zeros_(parameter)
    nn.init.eye_(module.proj.weight)
    return module


def test_without_the_convolution_the_output_is_the_weighted_mean_of_the_values():
    module = without_position(build())
    with torch.no_grad():  # q and k far from zero, so that 1e-6 beside the normaliser is nothing
        module.qkv.weight[:24] *= 0.1
        module.qkv.bias[:24] = 1
    x = torch.randn(2, 5, 7, 12, dtype=torch.float64)
    weights = module.attention_map(x)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
    v = module.qkv(x)[..., 24:].view(2, 35, 3, 4).transpose(1, 2)
    expected = (weights @ v).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


def test_permuted_tokens_give_permuted_outputs():
    module = without_position(build())
    x = torch.randn(2, 5, 7, 12, dtype=torch.float64)
    order = torch.randperm(35)
    permuted = x.flatten(1, 2)[:, order].view(x.shape)
    torch.testing.assert_close(module(permuted), module(x).flatten(1, 2)[:, order].view(x.shape))


def test_the_convolution_is_shared_by_the_heads():
    module = build()
    assert module.dwc.weight.shape == (4, 1, 5, 5)
    v = torch.randn(1, 6, 5, 4, dtype=torch.float64)
    out = module.local(v.repeat(1, 1, 1, 3)).view(1, 6, 5, 3, 4)
    torch.testing.assert_close(out, out[:, :, :, :1].expand_as(out))


def test_it_starts_as_the_paper_does():
    module = FocusedLinear(12, 3)
    assert (module.focusing_factor, module.dwc.kernel_size) == (3, (5, 5))
    assert module.qkv.bias is not None
    assert FocusedLinear(12, 3, qkv_bias=False).qkv.bias is None
    assert module.positional_encoding.count_nonzero() == 0
    assert module.scale.count_nonzero() == 0


class Allocations(TorchDispatchMode):
    """Counts the elements of all results."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.elements += out.numel() if isinstance(out, torch.Tensor) else 0
        return out


def test_memory_and_arithmetic_are_linear_in_the_tokens():
    module = FocusedLinear(16, 2, table_size=4)
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
    module = FocusedLinear(24, num_heads, kernel_size=3)
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, *size, 24))
    assert module.flops(*size) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"focusing_factor": 0}, "focusing_factor 0 is not positive"),
        ({"kernel_size": 4}, "attention.kernel_size=4 is not odd"),
        ({"kernel_size": -1}, "attention.kernel_size=-1 is not odd"),
        ({"table_size": 0}, "table_size=0"),
        ({"num_heads": 3}, "dim 8 is not a multiple of num_heads 3"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        FocusedLinear(8, **{"num_heads": 2} | keywords)


def test_bfloat16_weights_still_focus_in_float32():
    module = FocusedLinear(16, 4)
    x = torch.randn(2, 7, 5, 16)
    expected = module(x)
    module.bfloat16()
    focused = module.focused(*module.qkv(x.bfloat16()).chunk(3, dim=-1)[:2], 1.0)
    assert focused[0].dtype == focused[1].dtype == torch.float32
    assert F.mse_loss(module(x.bfloat16()).float(), expected).sqrt() < 0.01


def test_autocast_leaves_the_focused_map_in_float32():
    module = FocusedLinear(16, 4)
    x = torch.randn(2, 7, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        q, k, _ = module.qkv(x).chunk(3, dim=-1)
        assert q.dtype == torch.bfloat16
        assert all(t.dtype == torch.float32 for t in module.focused(q, k, 1.0))
        assert module(x).dtype == torch.bfloat16

"""Efficient attention: what its normalisations keep and ignore, and the other order of the products."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vantage.attention.efficient import Efficient

from .dense_reference import randomised
from .references.efficient import dense

DIM, HEADS = 12, 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(num_heads=HEADS, **keywords):
    return randomised(Efficient(DIM, num_heads, **keywords))


def image(height=5, width=7):
    return torch.randn(2, height, width, DIM, dtype=torch.float64)


def without_projection(module):
    nn.init.eye_(module.proj.weight)
    nn.init.zeros_(module.proj.bias)
    return module


def heads(x):
    return x.flatten(1, 2).unflatten(-1, (HEADS, -1)).transpose(1, 2)


@pytest.mark.parametrize("height", [1, 5])
def test_scaling_is_the_scaled_dot_product_summed_the_naive_way(height):
    module, x = without_projection(build(normalisation="scaling")), image(height)
    q, k, v = (heads(part) for part in module.qkv(x).chunk(3, dim=-1))
    naive = ((q @ k.mT) / (height * 7)) @ v
    torch.testing.assert_close(heads(module(x)), naive)


def test_the_implied_weights_are_a_distribution():
    module, x = without_projection(build()), image()
    weights = module.attention_map(x)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    torch.testing.assert_close(weights, dense(module, x)[1])
    v = module.qkv(x)[..., 2 * DIM :]
    torch.testing.assert_close(heads(module(x)), weights @ heads(v))


def test_constant_values_come_out_as_they_are():
    module = without_projection(build())
    nn.init.zeros_(module.qkv.weight[2 * DIM :])
    out = module(image())
    torch.testing.assert_close(out, module.qkv.bias[2 * DIM :].expand_as(out))


def test_a_constant_in_a_key_channel_changes_nothing():
    module, x = build(), image()
    wanted = module(x)
    with torch.no_grad():
        module.qkv.bias[DIM : 2 * DIM] += torch.randn(DIM)
    torch.testing.assert_close(module(x), wanted)


def test_a_constant_in_all_query_channels_of_a_position_changes_nothing():
    module = build()
    q, k = torch.randn(2, 2, HEADS, 35, DIM // HEADS, dtype=torch.float64)
    shift = torch.randn(2, HEADS, 35, 1, dtype=torch.float64)
    for ours, wanted in zip(module.normalised(q + shift, k), module.normalised(q, k)):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("normalisation", ["softmax", "scaling"])
def test_permuted_tokens_give_permuted_outputs(normalisation):
    module, x = build(normalisation=normalisation), image()
    order = torch.randperm(35)
    permuted = x.flatten(1, 2)[:, order].view(x.shape)
    torch.testing.assert_close(module(permuted), module(x).flatten(1, 2)[:, order].view(x.shape))


@pytest.mark.parametrize("num_heads", [1, HEADS])
def test_a_single_token_keeps_its_value(num_heads):
    module, x = without_projection(build(num_heads)), image(1, 1)
    torch.testing.assert_close(module(x), module.qkv(x)[..., 2 * DIM :])


def test_it_is_not_softmax_attention():
    module, x = without_projection(build()), image()
    q, k, v = (heads(part) for part in module.qkv(x).chunk(3, dim=-1))
    assert not torch.allclose(heads(module(x)), F.scaled_dot_product_attention(q, k, v), atol=0.05)


def test_parameters_are_those_of_four_convolutions():
    convolutions = nn.ModuleList(nn.Conv2d(64, 64, 1) for _ in range(4))
    assert sum(p.numel() for p in Efficient(64, 8).parameters()) == sum(p.numel() for p in convolutions.parameters())
    assert Efficient(64, 8).normalisation == "softmax"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"normalisation": "none"}, "efficient: normalisation 'none' is not one of softmax, scaling"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        Efficient(8, 2, **keywords)


def test_scaling_has_no_map():
    with pytest.raises(ValueError, match="efficient: normalisation=scaling has no attention map"):
        build(normalisation="scaling").attention_map(image())


def test_large_logits_stay_finite():
    module = Efficient(DIM, HEADS)
    nn.init.normal_(module.qkv.weight, std=1e3)
    x = torch.randn(1, 4, 5, DIM, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.isfinite().all()


def test_autocast_leaves_the_softmaxes_in_float32():
    module = Efficient(16, 4)
    x = torch.randn(2, 7, 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        q, k, _ = module.qkv(x).chunk(3, dim=-1)
        assert q.dtype == torch.bfloat16
        assert all(part.dtype == torch.float32 for part in module.normalised(q, k))
        assert module(x).dtype == torch.bfloat16

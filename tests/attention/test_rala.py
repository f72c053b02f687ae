"""Rank-augmented linear attention: what the keys' importance and the gate add, and to which ranks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vantage.attention.rala import Rala
from vantage.position.rope_axial import RopeAxial

from .dense_reference import randomised
from .references import rala as by_equations


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def image(height=5, width=7, dim=12, batch=2):
    return torch.randn(batch, height, width, dim, dtype=torch.float64)


def evenly(q, k):
    return k.new_full((*k.shape[:-1], 1), 1 / k.shape[-2])


def test_weights_without_a_position_are_a_distribution_and_those_of_the_equations():
    module = randomised(Rala(12, 3))
    x = image()
    weights = module.attention_map(x)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    explicit = by_equations.dense(module, x)[1]  # with 1e-6 beside the normaliser
    torch.testing.assert_close(weights, explicit, rtol=1e-4, atol=1e-6)


def test_the_linear_order_is_the_explicit_one_under_a_position_that_leaves_negative_weights():
    module = randomised(Rala(12, 3, position=RopeAxial(4, 3, base=10000)))
    x = image()
    wanted, weights = by_equations.dense(module, x)
    assert (weights < 0).any()
    torch.testing.assert_close(module(x), wanted)
    with pytest.raises(ValueError, match="rala: with a position there is no attention map"):
        module.attention_map(x)


def test_even_importance_leaves_plain_linear_attention_with_convolution_and_gate(monkeypatch):
    module = randomised(Rala(12, 3))
    x = image()
    augmented = module(x)
    monkeypatch.setattr(module, "importance", evenly)
    q, k, v, gate = module.qkvo(x).chunk(4, -1)
    q, k, values = (t.reshape(2, 35, 3, 4).transpose(1, 2) for t in (F.elu(q) + 1, F.elu(k) + 1, v))
    weights = q @ k.mT / 35
    out = weights @ values / (weights.sum(-1, keepdim=True) + 1e-6)
    local = F.conv2d(v.movedim(-1, 1), module.lepe.weight, module.lepe.bias, padding=2, groups=12).movedim(1, -1)
    wanted = module.proj((out.transpose(1, 2).reshape(x.shape) + local) * gate)
    torch.testing.assert_close(module(x), wanted)
    assert not torch.allclose(augmented, wanted)


def test_importance_is_a_distribution_over_the_tokens_and_follows_the_mean_query():
    module = randomised(Rala(12, 3))
    q, k = torch.rand(2, 3, 9, 4, dtype=torch.float64), torch.rand(2, 3, 9, 4, dtype=torch.float64)
    share = module.importance(q, k)
    torch.testing.assert_close(share.sum(-2), torch.ones(2, 3, 1, dtype=torch.float64))
    along = (k * q.mean(-2, keepdim=True)).sum(-1)
    assert torch.equal(share[..., 0].argsort(-1), along.argsort(-1))


def test_the_gate_raises_the_rank_of_the_output_and_the_importance_may_that_of_the_buffer():
    module = randomised(Rala(16, 2))
    nn.init.zeros_(module.lepe.weight)
    nn.init.zeros_(module.lepe.bias)
    x = image(8, 8, 16)
    buffers, outputs = module.ranks(x)
    assert buffers.shape == (2, 2)
    assert (buffers == 8).all()
    assert (outputs == 16).all()
    with torch.no_grad():
        module.qkvo.weight[32:48] = 0.0  # equal values: one row spans what a head gives
        module.qkvo.weight[48:] = 0.0  # a constant gate
    buffers, outputs = module.ranks(x)
    assert (buffers == 1).all()
    assert (outputs <= 2).all()
    nn.init.normal_(module.qkvo.weight[48:])
    assert (module.ranks(x)[1] > 8).all()


def test_permuted_tokens_give_permuted_outputs():
    module = randomised(Rala(12, 3))
    nn.init.zeros_(module.lepe.weight)
    x = image()
    order = torch.randperm(35)
    permuted = x.flatten(1, 2)[:, order].view(x.shape)
    torch.testing.assert_close(module(permuted), module(x).flatten(1, 2)[:, order].view(x.shape))


@pytest.mark.parametrize("magnitude", [1e-10, 1e3, 1e15])
def test_any_size_of_queries_and_keys_gives_finite_outputs_and_gradients(magnitude):
    module = Rala(16, 4)
    with torch.no_grad():
        module.qkvo.weight[:32] *= magnitude
    x = torch.randn(2, 4, 5, 16, requires_grad=True)
    out = module(x)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert module.attention_map(x).isfinite().all()


def test_parameters_are_those_of_the_release():
    module = Rala(64, 2)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert shapes == {
        "qkvo.weight": (256, 64),
        "qkvo.bias": (256,),
        "lepe.weight": (64, 1, 5, 5),
        "lepe.bias": (64,),
        "proj.weight": (64, 64),
        "proj.bias": (64,),
    }
    assert sum(p.numel() for p in module.parameters()) == 5 * 64**2 + 25 * 64 + 6 * 64
    assert Rala(64, 2, qkv_bias=False).qkvo.bias is None


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"kernel_size": 4}, "attention.kernel_size=4 is not odd"),
        ({"kernel_size": 0}, "attention.kernel_size=0 is not odd"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        Rala(8, 2, **keywords)


def test_features_stay_in_float32_under_autocast_and_in_bfloat16_weights():
    module = Rala(16, 4)
    x = torch.randn(2, 7, 5, 16)
    expected = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        qk = module.qkvo(x)[..., :32]
        assert qk.dtype == torch.bfloat16
        q, k = module.features(qk)
        assert q.dtype == k.dtype == module.importance(q, k).dtype == torch.float32
        assert module(x).dtype == torch.bfloat16
    out = module.bfloat16()(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()

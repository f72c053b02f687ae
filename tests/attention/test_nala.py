"""Norm-aware linear attention: the norm that sharpens, signs that exclude each other, extremes of float32."""

import itertools

import pytest
import torch
from torch import nn

from vantage.attention.nala import Nala, both_signs, norm_aware
from vantage.position.rope_axial import RopeAxial

from .dense_reference import randomised
from .references import nala as by_equations


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def image(height=5, width=7, dim=12, batch=2, **options):
    return torch.randn(batch, height, width, dim, dtype=torch.float64, **options)


def only_weights(module):
    """No convolution, and a projection that does nothing."""
    for parameter in (module.lepe.weight, module.lepe.bias, module.out_proj.bias):
        nn.init.zeros_(parameter)
    nn.init.eye_(module.out_proj.weight)
    return module


def entropy(weights):
    return -(weights * weights.clamp(min=1e-300).log()).sum(-1).mean()


def test_weights_without_a_position_are_a_distribution_and_those_of_the_equations():
    module = randomised(Nala(12, 3))
    x = image()
    weights = module.attention_map(x)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    explicit = by_equations.dense(module, x)[1]  # with 1e-6 beside the normaliser
    torch.testing.assert_close(weights, explicit, rtol=1e-4, atol=1e-6)
    assert (explicit.sum(-1) <= 1).all()


def test_the_linear_order_is_the_explicit_one_under_a_position_that_leaves_negative_weights():
    module = randomised(Nala(12, 3, position=RopeAxial(4, 3, base=10000)))
    x = image()
    wanted, weights = by_equations.dense(module, x)
    assert (weights < 0).any()
    torch.testing.assert_close(module(x), wanted)
    with pytest.raises(ValueError, match="nala: with a position there is no attention map"):
        module.attention_map(x)


def test_entropy_falls_as_queries_grow_and_their_direction_alone_does_not_change_it():
    module = randomised(Nala(64, 2))
    x = image(7, 7, 64)
    weight, bias = module.qkvg.weight.detach().clone(), module.qkvg.bias.detach().clone()
    entropies, of_directions = [], []
    for factor in (0.005, 0.02, 0.05, 0.1):  # norms of about 0.1, 0.5, 1 and 2
        with torch.no_grad():
            module.qkvg.weight[:64], module.qkvg.bias[:64] = factor * weight[:64], factor * bias[:64]
        entropies.append(entropy(module.attention_map(x)).item())
        q, k, _, _ = by_equations.parts_of(module, x)
        direction = both_signs(q / q.norm(dim=-1, keepdim=True))
        weights = direction @ both_signs(k**3).mT
        of_directions.append(entropy(weights / weights.sum(-1, keepdim=True)).item())
    assert all(before > after + 0.01 for before, after in itertools.pairwise(entropies))
    assert max(of_directions) - min(of_directions) < 1e-9


def test_the_power_lies_between_one_and_a_half_and_four_and_a_half():
    q = torch.tensor([3.0, -4.0], dtype=torch.float64)
    direction = torch.tensor([0.6, -0.8], dtype=torch.float64)
    small, large = norm_aware(1e-3 * q), norm_aware(100 * q)
    torch.testing.assert_close(small, direction.sign() * direction.abs() ** (1.5 + 3 * 5e-3), rtol=1e-3, atol=0)
    torch.testing.assert_close(large, direction.sign() * direction.abs() ** 4.5, rtol=1e-6, atol=0)


def test_entries_of_opposite_sign_do_not_meet():
    x = torch.tensor([1.0, -2.0, 0.0])
    assert torch.equal(both_signs(x), torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0, 0.0]))
    assert both_signs(x) @ both_signs(-x) == 0


@pytest.mark.parametrize("magnitude", [1e-30, 1e-12, 1e-6, 1e6, 1e15, 1e30])
def test_powers_neither_overflow_nor_underflow_in_float32(magnitude):
    q = (torch.randn(4, 9) * magnitude).requires_grad_()
    out = norm_aware(q)
    torch.testing.assert_close(out.double(), norm_aware(q.double()), rtol=1e-4, atol=1e-30)
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("of_q", [0.0, 1e-20, 1.0, 1e15])
@pytest.mark.parametrize("of_k", [0.0, 1e-15, 1.0, 1e15])
def test_any_size_of_queries_and_keys_gives_finite_outputs_and_gradients(of_q, of_k):
    module = Nala(16, 4)
    with torch.no_grad():
        module.qkvg.weight[:16] *= of_q
        module.qkvg.weight[16:32] *= of_k
        module.qkvg.bias[:32] = 0
    x = torch.randn(2, 4, 5, 16, requires_grad=True)
    out = module(x)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
    exact = module.double()(x.double())
    torch.testing.assert_close(out.double(), exact, rtol=1e-3, atol=1e-3)


def test_a_query_of_zero_has_a_gradient():
    q = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm_aware(q).sum(), q)
    assert torch.equal(gradient, torch.zeros_like(q))


def test_permuted_tokens_give_permuted_outputs():
    module = only_weights(randomised(Nala(12, 3)))
    x = image()
    order = torch.randperm(35)
    permuted = x.flatten(1, 2)[:, order].view(x.shape)
    torch.testing.assert_close(module(permuted), module(x).flatten(1, 2)[:, order].view(x.shape))


def test_a_closed_gate_closes_the_output():
    module = randomised(Nala(12, 3))
    nn.init.zeros_(module.qkvg.weight[36:])
    nn.init.constant_(module.qkvg.bias[36:], -800.0)
    out = module(image())
    torch.testing.assert_close(out, module.out_proj.bias.expand_as(out))


def test_parameters_are_those_of_the_release():
    module = Nala(64, 2)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    assert shapes == {
        "qkvg.weight": (256, 64),
        "qkvg.bias": (256,),
        "lepe.weight": (64, 1, 5, 5),
        "lepe.bias": (64,),
        "ln.weight": (64,),
        "ln.bias": (64,),
        "out_proj.weight": (64, 64),
        "out_proj.bias": (64,),
    }
    assert sum(p.numel() for p in module.parameters()) == 5 * 64**2 + 25 * 64 + 8 * 64
    assert Nala(64, 2, qkv_bias=False).qkvg.bias is None
    assert torch.equal(module.ln.weight, torch.ones(64))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"kernel_size": 4}, "attention.kernel_size=4 is not odd"),
        ({"kernel_size": -1}, "attention.kernel_size=-1 is not odd"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        Nala(8, 2, **keywords)


def test_features_stay_in_float32_under_autocast_and_in_bfloat16_weights():
    module = Nala(16, 4)
    x = torch.randn(2, 7, 5, 16)
    expected = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        q, k, _, _ = module.qkvg(x).chunk(4, dim=-1)
        assert q.dtype == torch.bfloat16
        assert all(t.dtype == torch.float32 for t in module.features(q, k))
        assert module(x).dtype == torch.bfloat16
    out = module.bfloat16()(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()

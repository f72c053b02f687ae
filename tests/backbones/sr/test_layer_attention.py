"""Layer attention against loops over pairs of layers written out here, and its properties."""

import math

import pytest
import torch

from vantage.backbones.sr.layer_attention import LayerAttention, weigh


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(scaled=False, gamma=0.7):
    module = LayerAttention(scaled=scaled).double()
    torch.nn.init.constant_(module.gamma, gamma)
    return module


def layers(*shape):
    return 0.4 * torch.randn(*shape, dtype=torch.float64)


def written_out(x, gamma, divisor):
    rows = []
    for own in x.unbind(1):
        energies = [(own * other).sum((1, 2, 3)) / divisor for other in x.unbind(1)]
        highest = torch.stack(energies).max(0).values
        powers = [torch.exp(highest - energy) for energy in energies]
        mixed = sum(p[:, None, None, None] * other for p, other in zip(powers, x.unbind(1)))
        rows.append(own + gamma * mixed / sum(powers)[:, None, None, None])
    return torch.stack(rows, 1)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 3, 5, 2), (1, 1, 2, 1, 3), (2, 3, 1, 1, 1)])
def test_equals_the_equations(shape, scaled):
    module, x = build(scaled), layers(*shape).requires_grad_()
    found, expected = module(x), written_out(x, module.gamma, math.prod(shape[2:]) if scaled else 1)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(out, [x, module.gamma], cotangent) for out in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("scaled", [False, True])
def test_starts_as_the_identity_and_learns(scaled):
    module, x = LayerAttention(scaled=scaled), torch.randn(2, 3, 4, 5, 6)
    out = module(x)
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert module.gamma.grad.abs() > 0


def test_the_layer_unlike_the_others_gets_the_weight():
    """Two equal unit layers and one at right angles to them: energies are 1 and 0."""
    x = torch.tensor([[1.0, 0], [1, 0], [0, 1]]).view(1, 3, 1, 1, 2)
    e = math.e
    shares = torch.tensor([[1, 1, e], [1, 1, e], [e, e, 1]]) / torch.tensor([[2 + e], [2 + e], [1 + 2 * e]])
    torch.testing.assert_close(LayerAttention().weights(x)[0], shares)


def test_layers_in_another_order_give_the_same_in_that_order():
    module, x, order = build(), layers(2, 5, 3, 4, 2), torch.randperm(5)
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order])
    torch.testing.assert_close(module.weights(x[:, order]), module.weights(x)[:, order][:, :, order])


def test_weights_do_not_see_where_pixels_are():
    module, x, order = build(), layers(2, 4, 3, 5, 6), torch.randperm(30)
    moved = x.flatten(3)[..., order].view_as(x)
    torch.testing.assert_close(module.weights(moved), module.weights(x))
    torch.testing.assert_close(module(moved), module(x).flatten(3)[..., order].view_as(x))


def test_a_constant_on_a_row_of_energies_changes_no_weight():
    energies = torch.randn(2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(weigh(energies + 1e3 * torch.randn(2, 4, 1).double()), weigh(energies))
    assert not torch.allclose(weigh(energies + torch.randn(2, 1, 4)), weigh(energies))


def test_energies_of_any_size_give_finite_weights_that_sum_to_one():
    weights = LayerAttention().weights(1e4 * torch.randn(2, 5, 8, 9, 9))
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5))


def test_scaled_weights_do_not_grow_with_the_picture():
    x = layers(2, 4, 3, 5, 6)
    twice = x.repeat(1, 1, 1, 2, 2)
    scaled, unscaled = build(scaled=True), build()
    torch.testing.assert_close(scaled.weights(twice), scaled.weights(x))
    assert (unscaled.weights(twice) - unscaled.weights(x)).abs().max() > 0.1
    torch.testing.assert_close(scaled.weights(math.sqrt(90) * x), unscaled.weights(x))


def test_half_precision_weighs_in_float32():
    module, x = LayerAttention(scaled=True), torch.randn(1, 4, 8, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        weights = module.weights(x)
    assert torch.equal(weights, module.weights(x))
    assert module.weights(x.bfloat16()).dtype == torch.float32
    assert module(x.bfloat16()).dtype == torch.bfloat16

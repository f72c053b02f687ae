"""LightNet attention: one pass over the tokens is where its recurrence ends, in any order; positions, norm and gate."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vantage.attention.lightnet import Lightnet
from vantage.position import RopeAxial

from .dense_reference import randomised
from .references.lightnet import dense

DIM, HEADS = 24, 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(num_heads=HEADS, **keywords):
    return randomised(Lightnet(DIM, num_heads, **keywords))


def image(height=5, width=7):
    return torch.randn(2, height, width, DIM, dtype=torch.float64)


def heads(x):
    return x.flatten(1, 2).unflatten(-1, (HEADS, -1)).transpose(1, 2)


def finished(module, out, x):
    """The norm, the gate and the projection of out (B, heads, N, head_dim)."""
    out = out.transpose(1, 2).reshape(x.shape)
    out = out * (out.square().mean(-1, keepdim=True) + module.norm.eps).rsqrt() * module.norm.weight
    return module.proj(out * module.gate(x).sigmoid())


def recurrence(q, k, v):
    """Causal, with a decay: what every token reads from the tokens up to itself; (B, heads, N, head_dim)."""
    total = k.logcumsumexp(dim=2)
    state, out = torch.zeros(*k.shape[:2], k.shape[3], v.shape[3], dtype=v.dtype), []
    for token in range(k.shape[2]):
        if token:
            state = state * (total[:, :, token - 1] - total[:, :, token]).exp()[..., None]
        key = (k[:, :, token] - total[:, :, token]).exp()
        state = state + key[..., None] * v[:, :, token, None, :]
        out.append((q[:, :, token, :, None] * state).sum(-2))
    return torch.stack(out, 2)


def test_the_output_is_the_explicit_sum_with_keys_softmaxed_over_the_tokens():
    module, x = build(), image()
    q, k, v = (heads(part) for part in module.qkv(x).chunk(3, dim=-1))
    torch.testing.assert_close(module(x), finished(module, F.silu(q) @ k.softmax(dim=2).mT @ v, x))


def test_the_recurrence_equals_its_parallel_form_token_by_token():
    """The causal form is the one-pass form over the tokens so far; the module is what the last token reads."""
    module, x = build(), image(1, 9)
    q, k, v = (heads(part) for part in module.qkv(x).chunk(3, dim=-1))
    causal = finished(module, recurrence(F.silu(q), k, v), x)
    for count in (1, 4, 9):
        torch.testing.assert_close(module(x[:, :, :count])[:, 0, -1], causal[:, 0, count - 1])


def test_the_recurrence_ends_in_the_same_state_in_any_order():
    module, x = build(), image(3, 4)
    q, k, v = (heads(part) for part in module.qkv(x).chunk(3, dim=-1))
    wanted = module(x)[:, 1, 2]  # token 6
    for _ in range(3):
        order = torch.randperm(12)
        order = torch.cat((order[order != 6], torch.tensor([6])))
        last = recurrence(F.silu(q[:, :, order]), k[:, :, order], v[:, :, order])[:, :, -1:]
        torch.testing.assert_close(finished(module, last, x[:, 1:2, 2:3])[:, 0, 0], wanted)


def test_a_constant_in_a_key_channel_changes_nothing():
    for position in (None, RopeAxial(DIM // HEADS, HEADS)):
        module, x = build(position=position), image()
        wanted = module(x)
        with torch.no_grad():
            module.qkv.bias[DIM : 2 * DIM] += torch.randn(DIM)
        torch.testing.assert_close(module(x), wanted)


def test_permuted_tokens_give_permuted_outputs_but_not_with_a_position():
    order = torch.randperm(35)
    x = image()
    permuted = x.flatten(1, 2)[:, order].view(x.shape)
    module = build()
    torch.testing.assert_close(module(permuted), module(x).flatten(1, 2)[:, order].view(x.shape))
    module = build(position=RopeAxial(DIM // HEADS, HEADS))
    assert not torch.allclose(module(permuted), module(x).flatten(1, 2)[:, order].view(x.shape), atol=0.01)


def test_a_rotation_sees_offsets_only():
    """Products of one query and one key, everywhere on the map: they depend on how far apart the two are."""
    module = build(position=RopeAxial(DIM // HEADS, HEADS))
    x = torch.randn(DIM, dtype=torch.float64).expand(1, 4, 5, DIM)
    products = dense(module, x)[1].view(HEADS, 4, 5, 4, 5)
    torch.testing.assert_close(products[:, 0, 1, 1, 3], products[:, 2, 2, 3, 4])
    assert not torch.allclose(products[:, 0, 1, 1, 3], products[:, 1, 3, 0, 1])


def test_the_length_of_the_values_cancels_in_the_norm():
    module, x = build(), 10 * image()
    wanted = module(x)
    with torch.no_grad():
        module.qkv.weight[2 * DIM :] *= 50
        module.qkv.bias[2 * DIM :] *= 50
    torch.testing.assert_close(module(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["sigmoid", "silu"])
def test_a_gate_of_zero(activation):
    module, x = build(gate_activation=activation), image()
    for parameter in module.gate.parameters():
        nn.init.zeros_(parameter)
    half = build(gate_activation=activation)
    half.load_state_dict(module.state_dict())
    nn.init.constant_(half.gate[1].bias, 1e3)
    closed, open_ = module(x) - module.proj.bias, half(x) - half.proj.bias
    torch.testing.assert_close(closed, open_ / 2 if activation == "sigmoid" else torch.zeros_like(x))


def test_the_gate_has_the_rank_it_says():
    assert Lightnet(DIM, HEADS).gate[0].weight.shape == (8, DIM)
    module = build(gate_rank=2)
    gate = module.gate(image()) - module.gate(torch.zeros(DIM, dtype=torch.float64))
    assert torch.linalg.matrix_rank(gate.flatten(0, 2)) == 2


@pytest.mark.parametrize(("num_heads", "rank"), [(3, None), (8, None), (2, 5)])
def test_parameters(num_heads, rank):
    own = 4 * (DIM**2 + DIM) + DIM  # qkv, proj and the norm
    rank_ = rank or DIM // num_heads
    gate = 2 * DIM * rank_ + rank_ + DIM
    assert sum(p.numel() for p in Lightnet(DIM, num_heads, gate_rank=rank).parameters()) == own + gate


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"gate_activation": "relu"}, "lightnet: gate_activation 'relu' is not one of sigmoid, silu"),
        ({"gate_rank": 0}, "lightnet: gate_rank 0 is not a whole number >= 1; null takes head_dim"),
        ({"gate_rank": 2.0}, r"lightnet: gate_rank 2\.0 is not a whole number"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        Lightnet(8, 2, **keywords)


def test_says_why_there_is_no_map():
    with pytest.raises(ValueError, match="lightnet: there is no attention map"):
        build().attention_map(image())


def test_large_keys_stay_finite():
    module = Lightnet(DIM, HEADS)
    nn.init.normal_(module.qkv.weight, std=1e3)
    x = torch.randn(1, 4, 5, DIM, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.isfinite().all()


def test_an_output_of_zero_has_finite_gradients():
    module = Lightnet(DIM, HEADS)
    nn.init.zeros_(module.qkv.weight)
    nn.init.zeros_(module.qkv.bias)
    module(torch.randn(1, 4, 5, DIM)).sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_bfloat16_weights_still_norm_in_float32():
    module = Lightnet(16, 4)
    x = torch.randn(2, 7, 5, 16)
    wanted = module(x)
    out = module.bfloat16()(x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert F.mse_loss(out.float(), wanted).sqrt() < 0.02

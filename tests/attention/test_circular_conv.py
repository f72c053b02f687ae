"""CAT against its circulant matrix at lengths of every kind, and what a circulant matrix of weights must keep."""

from functools import partial
from unittest import mock

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vantage.attention.circular_conv import CircularConv, transform_length
from vantage.attention.convolution import fast_length, real_transform_flops, transforms_fast
from vantage.attention.softmax import Softmax
from vantage.backbones.build import build_backbone

from .dense_reference import assert_same_with_gradients, randomised
from .references.circular_conv import circulant, reference, values

VARIANTS = ("cat", "cat_avg_key")
each_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(dim=8, num_heads=2, **keywords):
    return randomised(CircularConv(dim, num_heads, **keywords))


def image(height, width, batch=2, dim=8):
    return torch.randn(batch, height, width, dim, dtype=torch.float64)


# the matrix


@pytest.mark.parametrize("hw", [(1, 2), (1, 7), (2, 8), (1, 17), (19, 1), (2, 17), (1, 29), (3, 37)], ids=str)
@each_variant
def test_equals_the_circulant_matrix_at_even_odd_and_prime_lengths(variant, hw):
    module = build(variant=variant)
    assert_same_with_gradients(module, partial(reference, module), *hw)


@each_variant
def test_the_map_is_the_circulant_matrix_and_gives_the_output(variant):
    module, x = build(variant=variant), image(3, 5)
    weights = module.attention_map(x)
    torch.testing.assert_close(weights, circulant(module, x))
    mixed = (weights @ values(module, x.flatten(1, 2))).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), module.proj(mixed))


@each_variant
def test_rows_and_columns_sum_to_one_and_diagonals_are_constant(variant):
    weights = build(variant=variant).attention_map(image(3, 5))
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    torch.testing.assert_close(weights.sum(-2), torch.ones_like(weights[..., 0]))
    torch.testing.assert_close(weights, weights.roll((1, 1), (-2, -1)))


@pytest.mark.parametrize("hw", [(1, 1), (3, 5), (1, 17)], ids=str)
@each_variant
def test_constant_values_come_back_unchanged(variant, hw):
    module = identity_projection(build(variant=variant))
    layer, rows = (module.v, slice(None)) if variant == "cat" else (module.qkv, slice(16, None))
    layer.weight.data[rows] = 0
    out = module(image(*hw))
    torch.testing.assert_close(out, layer.bias[rows].expand_as(out))


@pytest.mark.parametrize("hw", [(3, 5), (1, 17)], ids=str)
@each_variant
def test_without_scores_every_token_is_the_mean_of_the_values(variant, hw):
    module = identity_projection(build(variant=variant))
    scores = module.score.weight if variant == "cat" else module.qkv.weight[:8]
    scores.data.zero_()
    x = image(*hw)
    mean = values(module, x.flatten(1, 2)).mean(2).flatten(1)
    torch.testing.assert_close(module(x), mean[:, None, None].expand_as(x))


@each_variant
def test_a_roll_of_the_whole_input_does_nothing(variant):
    """So the host must add an absolute position."""
    module, x = build(variant=variant), image(4, 5)
    torch.testing.assert_close(module(x.flatten(1, 2).roll(3, 1).view(x.shape)), module(x))


def identity_projection(module):
    nn.init.eye_(module.proj.weight)
    nn.init.zeros_(module.proj.bias)
    return module


# variants


def test_averaged_keys_need_no_keys():
    """Scores are those of softmax attention with each key replaced by the mean of all."""
    module, x = build(variant="cat_avg_key"), image(3, 5)
    q, k, _ = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in module.qkv(x.flatten(1, 2)).chunk(3, -1))
    wanted = (q @ k.mean(2)[..., None]).squeeze(-1).div(4**0.5).softmax(-1)
    torch.testing.assert_close(module.weights(x.flatten(1, 2)), wanted.mT)


def test_averaged_keys_take_the_weights_of_softmax_attention():
    module = CircularConv(8, 2, variant="cat_avg_key")
    module.load_state_dict(Softmax(8, 2).state_dict())


def test_the_bias_of_the_queries_has_no_effect_and_that_of_the_keys_has():
    module, x = build(variant="cat_avg_key"), image(3, 5)
    wanted = module(x)
    module.qkv.bias.data[:8] += 1
    torch.testing.assert_close(module(x), wanted)
    module.qkv.bias.data[8:16] += 1
    assert not torch.allclose(module(x), wanted, atol=1e-3)


def test_alternation_is_a_matter_of_slots():
    with pytest.raises(ValueError, match="cat_alter") as refused:
        CircularConv(8, 2, variant="cat_alter")
    override = OverridesParser.create().parse_override(str(refused.value).split("'")[-2])
    assert override.key_or_group == "model.slots"
    model = build_backbone("vit", "vit_pico32", attention=partial(CircularConv), slots=override.value())
    kinds = [isinstance(block.attn, CircularConv) for block in model.net.blocks]
    assert kinds == [index % 2 == 1 for index in range(len(kinds))]
    assert len(kinds) >= 2
    assert model(torch.randn(1, 3, 33, 47)).isfinite().all()


@pytest.mark.parametrize(
    ("variant", "bias", "count"),
    [
        ("cat", False, 24 * 3 + 2 * 24**2 + 24),
        ("cat", True, 24 * 3 + 2 * 24**2 + 2 * 24),
        ("cat_avg_key", False, 4 * 24**2 + 24),
    ],
)
def test_parameters_are_as_many_as_the_paper_says(variant, bias, count):
    """dim (heads + dim) or 3 dim^2, and the projection's."""
    module = CircularConv(24, 3, variant=variant, qkv_bias=bias)
    assert sum(parameter.numel() for parameter in module.parameters()) == count


# lengths


def test_lengths_transform_as_they_are_or_on_a_longer_circle():
    assert [transform_length(n) for n in (1, 2, 49, 117, 196, 784, 3136)] == [1, 2, 49, 117, 196, 784, 3136]
    for tokens in (17, 19, 34, 17 * 29, 997):
        length = transform_length(tokens)
        assert length >= 2 * tokens - 1
        assert length % 2 == 0
        assert transforms_fast(length)
        assert not transforms_fast(tokens)
    assert [fast_length(n) for n in (1, 2, 15, 31, 33, 127)] == [2, 2, 16, 32, 36, 128]
    assert real_transform_flops(8) == 5 * 8 * 3 // 2


@pytest.mark.parametrize("tokens", [1, 2, 9, 16])
def test_a_longer_circle_gives_the_same_where_it_is_not_needed(tokens):
    module, x = build(), image(1, tokens)
    wanted = module(x)
    with mock.patch("vantage.attention.circular_conv.transforms_fast", side_effect=[False] * 9):
        assert transform_length(tokens) == max(2 * tokens, 2)
        torch.testing.assert_close(module(x), wanted)


@pytest.mark.parametrize("hw", [(4, 4), (1, 17)], ids=str)
@each_variant
def test_flops_are_what_torch_counts_and_the_transforms(variant, hw):
    module = CircularConv(24, 3, variant=variant)
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, *hw, 24))
    points = 16 if hw == (4, 4) else 36  # 34 = 2 * 17
    transforms = (2 * 24 + 3) * real_transform_flops(points)
    assert module.flops(*hw) == counter.get_total_flops() + transforms


# precision, dropout, refusals


@each_variant
def test_weights_are_float32_under_autocast_and_in_bfloat16(variant):
    module = CircularConv(16, 4, variant=variant)
    x = torch.randn(2, 5, 7, 16)
    wanted = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.weights(x.flatten(1, 2)).dtype == torch.float32
        assert module(x).dtype == torch.bfloat16
    module.bfloat16()
    assert module.weights(x.bfloat16().flatten(1, 2)).dtype == torch.float32
    torch.testing.assert_close(module(x.bfloat16()).float(), wanted, rtol=0.05, atol=0.02)


def test_dropout_drops_an_offset_for_all_queries():
    module = identity_projection(CircularConv(8, 2, attn_drop=0.5, qkv_bias=False))
    nn.init.eye_(module.v.weight)
    steady = torch.ones(1, 4, 4, 8) * torch.arange(1.0, 9)
    out = module(steady)  # each query sums what is left of the same weights
    torch.testing.assert_close(out, out[:, :1, :1].expand_as(out))
    assert not torch.allclose(out, steady)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"variant": "cat_alter"}, r"variant 'cat_alter' is a choice of layers.*model\.slots"),
        ({"variant": "dog"}, "variant 'dog' is unknown; use one of cat, cat_avg_key"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        CircularConv(8, 2, **keywords)

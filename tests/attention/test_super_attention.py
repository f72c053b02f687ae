"""Super, efficient and optimised attention against softmax attention with fixed weights, and the alignment by hand."""

import pytest
import torch
from torch import nn

from vantage.attention.softmax import Softmax
from vantage.attention.super_attention import SuperAttention

from .dense_reference import randomised
from .references.super_attention import alignment

DIM, HEADS = 12, 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(form, **keywords):
    return randomised(SuperAttention(DIM, HEADS, form=form, **keywords))


def image(height, width, batch=2):
    return torch.randn(batch, height, width, DIM, dtype=torch.float64)


def as_softmax(module):
    """Softmax attention whose values, and whose keys if the module has none, are projected by the identity."""
    softmax = Softmax(DIM, HEADS).double()
    weight, bias = (
        (module.qk.weight, module.qk.bias) if module.form == "optimised" else (module.q.weight, module.q.bias)
    )
    missing = 3 - len(weight) // DIM
    weight = torch.cat((weight, *[torch.eye(DIM, dtype=torch.float64)] * missing))
    bias = torch.cat((bias, torch.zeros(missing * DIM, dtype=torch.float64)))
    softmax.load_state_dict({"qkv.weight": weight, "qkv.bias": bias, **module.proj.state_dict(prefix="proj.")})
    return softmax


@pytest.mark.parametrize("form", ["optimised", "efficient"])
def test_equals_softmax_attention_with_identities_in_the_place_of_the_weights_that_are_left_out(form):
    module, x = build(form), image(5, 7)
    softmax = as_softmax(module)
    torch.testing.assert_close(module(x), softmax(x))
    torch.testing.assert_close(module.attention_map(x), softmax.attention_map(x))


def test_super_starts_as_efficient():
    module, efficient, x = SuperAttention(DIM, HEADS).double(), build("efficient"), image(4, 5)
    assert module.alignment.count_nonzero() == 0
    assert module.alignment.shape == (196, 196)
    module.load_state_dict(efficient.state_dict(), strict=False)
    torch.testing.assert_close(module(x), efficient(x), rtol=0, atol=1e-15)


@pytest.mark.parametrize("hw", [(1, 1), (2, 3), (3, 2), (4, 5), (7, 1), (1, 9)], ids=str)
def test_the_values_are_aligned_before_the_heads_attend(hw):
    """Efficient attention with W_A X for its values, whatever the table's size is."""
    module, x = build("super", table_size=(3, 2)), image(*hw)
    values = (alignment(module, *hw) @ x.flatten(1, 2)).view_as(x)
    torch.testing.assert_close(module.align(x), values)
    weights = module.attention_map(x)  # (B, heads, N, N)
    heads = values.flatten(1, 2).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    torch.testing.assert_close(module(x), module.proj((weights @ heads).transpose(1, 2).reshape(x.shape)))


def test_on_a_map_of_the_tables_size_the_table_is_used_as_it_is():
    module, x = build("super", table_size=(2, 3)), image(2, 3)
    aligned = torch.einsum("qk,bkc->bqc", module.alignment + torch.eye(6, dtype=torch.float64), x.flatten(1, 2))
    torch.testing.assert_close(module.align(x).flatten(1, 2), aligned)


@pytest.mark.parametrize("hw", [(2, 2), (4, 4), (8, 8), (12, 5)], ids=str)
def test_a_sum_over_the_keys_keeps_its_size_on_another_map(hw):
    """A row that sums a map of equal tokens makes the same of it at any resolution."""
    module = build("super", table_size=4)
    nn.init.constant_(module.alignment, 0.25)  # 16 cells
    x = torch.ones(1, *hw, DIM, dtype=torch.float64)
    torch.testing.assert_close(module.align(x), 5 * x)


@pytest.mark.parametrize("form", ["optimised", "efficient", "super"])
def test_only_super_knows_the_order_of_the_tokens(form):
    module, x = build(form, table_size=3), image(4, 5)
    order = torch.randperm(20)
    shuffled = module(x.flatten(1, 2)[:, order].view_as(x)).flatten(1, 2)
    equivariant = torch.allclose(shuffled, module(x).flatten(1, 2)[:, order])
    assert equivariant == (form != "super")


@pytest.mark.parametrize(("form", "share"), [("optimised", 0.75), ("efficient", 0.5), ("super", 0.5)])
def test_weights_are_three_quarters_and_half_of_those_of_softmax_attention(form, share):
    counted = {
        name: parameter.numel()
        for name, parameter in SuperAttention(64, 4, form=form).named_parameters()
        if not name.endswith("bias")
    }
    assert counted.pop("alignment", None) == (196**2 if form == "super" else None)
    assert sum(counted.values()) == share * 4 * 64**2


@pytest.mark.parametrize("form", ["optimised", "efficient"])
def test_starts_with_xavier_uniform_weights_and_without_biases(form):
    module = SuperAttention(64, 4, form=form)
    linear = module.qk if form == "optimised" else module.q
    bound = (6 / 128) ** 0.5  # of a 64 x 64 matrix
    for weight in (linear.weight, module.proj.weight):
        assert 0.98 * bound < weight.abs().max() <= bound
    assert not linear.bias.any()
    assert not module.proj.bias.any()
    assert getattr(SuperAttention(64, 4, form=form, qkv_bias=False), "qk" if form == "optimised" else "q").bias is None


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"form": "SDPA"}, "form 'SDPA' is none of super, efficient, optimised"),
        ({"table_size": 0}, "table_size=0"),
        ({"table_size": (7, 7, 7)}, r"table_size=\(7, 7, 7\)"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        SuperAttention(DIM, HEADS, **keywords)

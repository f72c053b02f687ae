"""The grid against explicit weights, timm's MaxViT grid attention, and window attention of the permuted map."""

import math

import pytest
import torch
from timm.models.maxxvit import MaxxVitTransformerCfg, PartitionAttentionCl
from torch.utils.flop_counter import FlopCounterMode

from vantage.attention.grid import Grid
from vantage.attention.window import Window
from vantage.position.rel_bias import RelBias
from vantage.position.rope_axial import RopeAxial

from .dense_reference import MAPS, allowed_pairs, assert_same_with_gradients, dense_layer, randomised, table_bias


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("hw", MAPS)
@pytest.mark.parametrize("kind", ["none", "rel_bias", "rope_axial"])
@pytest.mark.parametrize("size", [1, 2, (3, 2), 4, 7])
def test_equals_dense(hw, kind, size):
    position = {"none": None, "rel_bias": RelBias(4, 3), "rope_axial": RopeAxial(4, 3)}[kind]
    module = randomised(Grid(12, 3, grid_size=size, position=position))
    steps = tuple(math.ceil(length / cells) for length, cells in zip(hw, module.grid_size))
    allowed = allowed_pairs(*hw, lambda query, key: all((q - k) % s == 0 for q, k, s in zip(query, key, steps)))

    def reference(x):
        bias = table_bias(module.position.table, *hw, module.grid_size, steps) if kind == "rel_bias" else None
        return dense_layer(module, x, allowed, bias, rotate=kind == "rope_axial")

    assert_same_with_gradients(module, reference, *hw)


def test_equals_timm_maxvit_grid_attention():
    cfg = MaxxVitTransformerCfg(dim_head=4, window_size=(4, 4), grid_size=(4, 4), head_first=False)
    layer = PartitionAttentionCl(12, "grid", cfg).double()
    torch.nn.init.normal_(layer.attn.rel_pos.relative_position_bias_table)
    module = Grid(12, 3, grid_size=4, position=RelBias(4, 3)).double()
    module.qkv.load_state_dict(layer.attn.qkv.state_dict())
    module.proj.load_state_dict(layer.attn.proj.state_dict())
    with torch.no_grad():
        table = layer.attn.rel_pos.relative_position_bias_table.T.unflatten(1, (7, 7))
        module.position.table.copy_(table.flip(1, 2))  # timm counts query - key
    x = torch.randn(2, 8, 12, 12, dtype=torch.float64, requires_grad=True)
    got, wanted = module(x), layer._partition_attn(x)
    torch.testing.assert_close(got, wanted)
    (ours,) = torch.autograd.grad(got.square().sum(), x)
    (theirs,) = torch.autograd.grad(wanted.square().sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_equals_window_attention_of_the_map_with_its_factors_swapped():
    grid = randomised(Grid(12, 3, grid_size=(4, 3)))
    window = Window(12, 3, window_size=(4, 3)).double()
    window.load_state_dict(grid.state_dict())
    x = torch.randn(2, 8, 15, 12, dtype=torch.float64)
    # pixel (g * 2 + i, h * 5 + j) <-> (i * 4 + g, j * 3 + h)
    swapped = x.view(2, 4, 2, 3, 5, 12).permute(0, 2, 1, 4, 3, 5).reshape(x.shape)
    back = window(swapped).view(2, 2, 4, 5, 3, 12).permute(0, 2, 1, 4, 3, 5).reshape(x.shape)
    torch.testing.assert_close(grid(x), back)


def test_clamp_false_raises():
    with pytest.raises(ValueError, match=r"grid_size \(7, 7\) does not fit the 5x9 map.*attention.grid_size=5"):
        Grid(12, 3, clamp=False)(torch.randn(1, 5, 9, 12))


@pytest.mark.parametrize("hw", [(1, 1), (8, 8), (11, 7), (15, 4)])
def test_flops_count_pairs_that_attend(hw):
    module = Grid(12, 3, grid_size=4)
    pairs = int((module.attention_map(torch.randn(1, *hw, 12))[0, 0] > 0).sum())
    assert module.flops(*hw) == 8 * hw[0] * hw[1] * 12 * 12 + 4 * 12 * pairs


def test_flops_equal_the_counter_where_the_grid_divides():
    module = Grid(12, 3, grid_size=4)
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, 8, 12, 12))
    assert module.flops(8, 12) == counter.get_total_flops()

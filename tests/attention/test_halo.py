"""Blocks with a halo against timm's layer, against global attention, under translation, with and without padding."""

import logging

import pytest
import torch
import torch.nn.functional as F
from timm.layers.halo_attn import HaloAttn

from vantage.attention.base import log_once
from vantage.attention.halo import Halo

from .dense_reference import randomised


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def with_weights_of(layer, module):
    """timm's layer has biases here, keys and values of a head side by side, no projection, 2 h vectors too many."""
    heads, head_dim = module.num_heads, module.head_dim
    with torch.no_grad():
        k, v = layer.kv.weight.flatten(1).view(heads, 2, head_dim, -1).unbind(1)
        module.qkv.weight.copy_(torch.cat((layer.q.weight.flatten(1), k.flatten(0, 1), v.flatten(0, 1))))
        k, v = layer.kv.bias.view(heads, 2, head_dim).unbind(1)
        module.qkv.bias.copy_(torch.cat((layer.q.bias, k.flatten(), v.flatten())))
        module.height_rel.copy_(layer.pos_embed.height_rel[2 * module.halo_size[0] :])
        module.width_rel.copy_(layer.pos_embed.width_rel[2 * module.halo_size[1] :])
        torch.nn.init.eye_(module.proj.weight)
        torch.nn.init.zeros_(module.proj.bias)
    return module


@pytest.mark.parametrize("scale_pos", [False, True])
@pytest.mark.parametrize(("block", "halo", "hw"), [(4, 1, (8, 12)), (3, 2, (9, 6)), (2, 2, (4, 8)), (2, 0, (4, 6))])
def test_equals_timm_where_the_padding_is_not_masked(block, halo, hw, scale_pos):
    layer = HaloAttn(
        12, num_heads=3, dim_head=4, block_size=block, halo_size=halo, qkv_bias=True, scale_pos_embed=scale_pos
    )
    layer = randomised(layer)
    module = Halo(12, 3, block_size=block, halo_size=halo, mask_padding=False, scale_pos=scale_pos).double()
    module = with_weights_of(layer, module)
    x = torch.randn(2, *hw, 12, dtype=torch.float64, requires_grad=True)
    got, wanted = module(x), layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(got, wanted)
    (ours,) = torch.autograd.grad(got.square().sum(), x)
    (theirs,) = torch.autograd.grad(wanted.square().sum(), x)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("scale_pos", [False, True])
@pytest.mark.parametrize("mask_padding", [False, True])
def test_one_block_over_the_map_is_global_attention_with_relative_positions(mask_padding, scale_pos):
    height, width, dim = 3, 5, 12
    module = Halo(dim, 3, block_size=(3, 5), halo_size=0, mask_padding=mask_padding, scale_pos=scale_pos)
    module = randomised(module)
    x = torch.randn(2, height, width, dim, dtype=torch.float64)
    q, k, v = module.qkv(x).view(2, height * width, 3, 3, 4).permute(2, 0, 3, 1, 4)
    y, x_ = (t.flatten() for t in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    vectors = module.height_rel[y - y[:, None] + height - 1] + module.width_rel[x_ - x_[:, None] + width - 1]
    position = torch.einsum("bhqd,qkd->bhqk", q, vectors) * (0.5 if scale_pos else 1.0)
    mixed = F.scaled_dot_product_attention(q, k, v, position)
    torch.testing.assert_close(module(x), module.proj(mixed.transpose(1, 2).reshape(x.shape)))


def test_a_translation_by_a_block_commutes_inside_of_the_map():
    module = randomised(Halo(12, 3, block_size=4, halo_size=3))
    x = torch.randn(1, 20, 24, 12, dtype=torch.float64)
    inside = slice(8, 16)
    moved = module(x.roll((4, -4), (1, 2)))[:, inside, inside]
    torch.testing.assert_close(moved, module(x)[:, slice(4, 12), slice(12, 20)])
    other = module(x.roll((2, 0), (1, 2)))[:, inside, inside]
    assert not torch.allclose(other, module(x)[:, slice(6, 14), inside])


@pytest.mark.parametrize("hw", [(8, 8), (9, 6)])
def test_masked_padding_may_hold_anything(hw, monkeypatch):
    pad, x = F.pad, torch.randn(2, *hw, 12, dtype=torch.float64)
    masked = randomised(Halo(12, 3, block_size=4, halo_size=2))
    published = Halo(12, 3, block_size=4, halo_size=2, mask_padding=False).double()
    published.load_state_dict(masked.state_dict())
    wanted, zeros = masked(x), published(x)
    monkeypatch.setattr(F, "pad", lambda tensor, sizes: pad(tensor, sizes, value=7.0))
    torch.testing.assert_close(masked(x), wanted)
    assert not torch.allclose(published(x), zeros)


def test_the_zeros_beyond_the_map_take_their_share_of_a_row():
    module = randomised(Halo(12, 3, block_size=4, halo_size=2, mask_padding=False))
    x = torch.randn(2, 12, 12, 12, dtype=torch.float64)
    sums = module.attention_map(x).sum(-1).view(2, 3, 12, 12)
    torch.testing.assert_close(sums[:, :, 4:8, 4:8], torch.ones(2, 3, 4, 4, dtype=torch.float64))
    assert (sums[:, :, :4] < 1).all()
    assert (sums[:, :, :, 8:] < 1).all()


def test_a_query_sees_its_block_and_the_halo():
    seen = Halo(12, 3, block_size=3, halo_size=2).attention_map(torch.randn(1, 11, 10, 12))[0, 0] > 0
    seen = seen.view(11, 10, 11, 10)
    for y, x in ((0, 0), (4, 5), (10, 9), (8, 2)):
        rows = torch.arange(11)[:, None]
        columns = torch.arange(10)
        top, left = y // 3 * 3, x // 3 * 3
        wanted = (rows >= top - 2) & (rows < top + 5) & (columns >= left - 2) & (columns < left + 5)
        assert torch.equal(seen[y, x], wanted)


def test_tables_are_shared_by_heads_and_hold_the_offsets_that_occur():
    module = Halo(64, 4)  # 8 + 3 pixels away at most
    assert module.height_rel.shape == module.width_rel.shape == (2 * (8 + 3) - 1, 16)
    assert sum(p.numel() for p in module.parameters()) == 4 * 64 * 64 + 4 * 64 + 2 * 21 * 16
    assert Halo(64, 4, block_size=(4, 2), halo_size=(0, 5)).width_rel.shape == (13, 16)
    module = Halo(4096, 16)
    assert module.width_rel.std().item() == pytest.approx(256**-0.5, rel=0.05)
    x = torch.randn(1, 24, 24, 64)
    module = Halo(64, 4)
    module(x).square().sum().backward()
    assert (module.height_rel.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("hw", [(5, 7), (3, 20)])
def test_a_clamped_block_keeps_the_vectors_of_its_offsets(hw):
    large = randomised(Halo(12, 3, block_size=9, halo_size=2))
    block = [min(9, length) for length in hw]
    halo = [2 if length > 9 else 0 for length in hw]
    small = Halo(12, 3, block_size=block, halo_size=halo).double()
    with torch.no_grad():
        for table, mine in ((large.height_rel, small.height_rel), (large.width_rel, small.width_rel)):
            surplus = (len(table) - len(mine)) // 2
            mine.copy_(table[surplus : len(table) - surplus])
        small.qkv.load_state_dict(large.qkv.state_dict())
        small.proj.load_state_dict(large.proj.state_dict())
    x = torch.randn(2, *hw, 12, dtype=torch.float64)
    torch.testing.assert_close(large(x), small(x))


def test_clamp_logs_once_or_raises(caplog):
    log_once.cache_clear()
    module = Halo(12, 3)
    with caplog.at_level(logging.INFO, logger="vantage"):
        for _ in range(3):
            module(torch.randn(1, 4, 20, 12))
    (record,) = caplog.records
    assert record.getMessage() == (
        "halo: block_size (8, 8) with halo_size (3, 3) is clamped to (4, 8) with (0, 3) on the 4x20 map"
    )
    with pytest.raises(ValueError, match=r"halo: .*4x20 map and attention.clamp is false; block_size \(4, 8\) with"):
        Halo(12, 3, clamp=False)(torch.randn(1, 4, 20, 12))
    with pytest.raises(ValueError, match=r"block_size \(2, 2\) with halo_size \(2, 2\) does, or use"):
        Halo(12, 3, block_size=2, halo_size=5, clamp=False)(torch.randn(1, 4, 4, 12))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"block_size": 0}, "attention.block_size=0"),
        ({"block_size": [3, 3, 3]}, "attention.block_size="),
        ({"halo_size": -1}, "attention.halo_size=-1"),
        ({"halo_size": 1.5}, "attention.halo_size=1.5"),
    ],
)
def test_bad_values_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        Halo(12, 3, **keywords)

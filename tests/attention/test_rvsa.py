"""RVSA against window attention, and the properties of its windows; test_suite.py has the equations."""

import logging
import math
from functools import partial

import pytest
import torch

from vantage.attention.base import log_once
from vantage.attention.rvsa import Rvsa, visible
from vantage.attention.softmax import Softmax
from vantage.attention.window import Window
from vantage.backbones.build import build_backbone
from vantage.position.rel_bias import RelBias

from .dense_reference import MAPS, allowed_pairs, assert_same_with_gradients, randomised, tokens_of
from .references.positions import heads_first, heads_last, positioned_weights
from .references.rvsa import dense, reference
from .references.window import same_window

OFFSET_X, OFFSET_Y, SCALE_X, SCALE_Y, ANGLE = range(5)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(dim=12, num_heads=3, window_size=4, **keywords):
    """In float64 with every parameter random, the predictor's such that windows move by a pixel or two."""
    module = randomised(Rvsa(dim, num_heads, window_size=window_size, **keywords))
    torch.nn.init.normal_(module.sampling.weight, std=0.2)
    return module


def fixed(module, **moves):
    """The same move for every window: module with a constant prediction (offset_x=..., angle=... of all heads)."""
    torch.nn.init.zeros_(module.sampling.weight)
    torch.nn.init.zeros_(module.sampling.bias)
    with torch.no_grad():
        for name, value in moves.items():
            module.sampling.bias.view(-1, 5)[:, globals()[name.upper()]] = value
    return module


def without_tables(module):
    for table in (module.rel_bias.table, module.rel_pos_h, module.rel_pos_w):
        torch.nn.init.zeros_(table)
    return module


def image(height, width, batch=2, dim=12):
    return torch.randn(batch, height, width, dim, dtype=torch.float64)


@pytest.mark.parametrize("hw", MAPS)
@pytest.mark.parametrize("keywords", [{"separate_kv": True}, {"window_size": (2, 3)}], ids=str)
def test_attention_map_is_the_explicit_one(hw, keywords):
    module, x = build(**keywords), image(*hw)
    torch.testing.assert_close(module.attention_map(x), dense(module, x)[0])


@pytest.mark.parametrize("separate_kv", [False, True])
def test_equals_dense_where_windows_leave_the_map(separate_kv):
    module = build(separate_kv=separate_kv)
    with torch.no_grad():
        module.sampling.bias.view(3, -1, 5)[0, 0, OFFSET_X] = 3  # the first head's right windows see nothing
        module.sampling.bias.view(3, -1, 5)[1, -1, OFFSET_Y] = -0.8
    inside, alone = visible(module.points(image(9, 6), (4, 4)), 9, 6)
    assert alone[:, 0].any()
    assert not alone[:, 1:].all()
    assert not inside.all()
    assert_same_with_gradients(module, partial(reference, module), 9, 6)
    x = image(9, 6)
    torch.testing.assert_close(module.attention_map(x), dense(module, x)[0])


@pytest.mark.parametrize("separate_kv", [False, True])
def test_gradients_match_finite_differences_away_from_pixel_boundaries(separate_kv):
    module = build(dim=4, num_heads=2, window_size=3, separate_kv=separate_kv)
    x = image(5, 4, batch=1, dim=4).requires_grad_()
    places = module.points(x, (3, 3)) * 2  # bilinear reads have a kink at pixels, the mask a step half-way
    assert (places - places.round()).abs().min() > 1e-4
    assert not visible(module.points(x, (3, 3)), 5, 4)[0].all()
    names, parameters = zip(*module.named_parameters())

    def run(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters))


# what it is at the start, and at special moves


@pytest.mark.parametrize("hw", [*MAPS, (9, 13), (14, 14), (8, 21)])
@pytest.mark.parametrize("separate_kv", [False, True])
def test_starts_as_window_attention_with_the_same_bias(hw, separate_kv):
    rvsa = Rvsa(12, 3, separate_kv=separate_kv)
    assert not any(p.any() for name, p in rvsa.named_parameters() if name.startswith(("sampling", "rel_pos")))
    torch.nn.init.normal_(rvsa.rel_bias.table)
    window = Window(12, 3, position=RelBias(4, 3))
    window.load_state_dict({n.replace("rel_bias", "position"): p for n, p in rvsa.state_dict().items() if n in KEPT})
    x = image(*hw).float()
    torch.testing.assert_close(rvsa(x), window(x))
    torch.testing.assert_close(rvsa.attention_map(x), window.attention_map(x))


@pytest.mark.parametrize("hw", [*MAPS, (8, 21)])
@pytest.mark.parametrize("separate_kv", [False, True])
def test_zero_predictors_are_window_attention_with_the_table_and_the_decomposed_terms(hw, separate_kv):
    module, x = fixed(build(separate_kv=separate_kv)), image(*hw)
    q, k, v = heads_first(x, module.qkv, 3, 3)
    places = torch.tensor(tokens_of(*hw))
    y, x_ = ((places[:, None] - places).clamp(-3, 3) + 3).unbind(-1)  # query - key, further apart in no window
    extra = module.rel_bias.table[:, 6 - y, 6 - x_] + torch.einsum(
        "bhqd,qkd->bhqk", q, module.rel_pos_h[y] + module.rel_pos_w[x_]
    )
    allowed = allowed_pairs(*hw, same_window((4, 4), (0, 0), hw))
    weights = positioned_weights(q, k, None, *hw, allowed, extent=(4, 4), extra=extra)
    torch.testing.assert_close(module(x), module.proj(heads_last(weights @ v, x.shape)))
    torch.testing.assert_close(module.attention_map(x), weights)


KEPT = {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "rel_bias.table"}


def test_window_over_the_map_starts_as_full_attention():
    rvsa, full = fixed(without_tables(build(window_size=9))), Softmax(12, 3).double()
    full.load_state_dict({name: p for name, p in rvsa.state_dict().items() if name in full.state_dict()})
    x = image(9, 5)
    torch.testing.assert_close(rvsa(x), full(x))


@pytest.mark.parametrize("hw", [(8, 8), (4, 12), (7, 10)])
@pytest.mark.parametrize("turns", [1, 2, 3, -1])
def test_quarter_turns_read_the_same_pixels_in_another_order(hw, turns):
    still, turned = (fixed(without_tables(build()), angle=a) for a in (0.0, turns * math.pi / 2))
    turned.qkv.load_state_dict(still.qkv.state_dict())
    turned.proj.load_state_dict(still.proj.state_dict())
    x = image(*hw)
    torch.testing.assert_close(turned(x), still(x))
    torch.nn.init.normal_(turned.rel_pos_h)
    assert not torch.allclose(turned(x), still(x)), "a bias belongs to the slot, whatever is read there"


def test_positive_angles_turn_clockwise_on_the_screen():
    points = fixed(build(), angle=math.pi / 2).points(image(4, 12), (4, 4))[0, 0, 0]
    torch.testing.assert_close(points[1, 0], torch.tensor([7.0, 0.0], dtype=torch.float64))  # top left -> top right
    torch.testing.assert_close(points[1, 3], torch.tensor([7.0, 3.0], dtype=torch.float64))


def test_windows_turn_in_pixels_on_maps_that_are_not_square():
    points = fixed(build(), angle=0.3).points(image(4, 12), (4, 4))
    sides = points.unflatten(4, (4, 4))
    for axis in (4, 5):
        torch.testing.assert_close(sides.diff(dim=axis).norm(dim=-1), torch.ones_like(sides.diff(dim=axis)[..., 0]))


def test_scale_and_offset_along_each_axis():
    module, x = build(), image(8, 12)
    origin = fixed(module).points(x, (4, 4))
    moved = fixed(module, offset_x=0.5, offset_y=-1.0).points(x, (4, 4)) - origin
    # a number of [-1, 1] over the map, divided by the number of windows on the axis: 3 along x, 2 along y
    torch.testing.assert_close(moved, torch.tensor([0.5 / 3 * 11 / 2, -1 / 2 * 7 / 2]).double().expand_as(moved))
    wide = fixed(module, scale_x=1.0, scale_y=-0.5).points(x, (4, 4)).unflatten(4, (4, 4))
    torch.testing.assert_close(wide.diff(dim=5)[..., 0], torch.full((2, 3, 1, 6, 4, 3), 2.0).double())
    torch.testing.assert_close(wide.diff(dim=4)[..., 1], torch.full((2, 3, 1, 6, 3, 4), 0.5).double())
    centre = origin.mean(4)
    torch.testing.assert_close(wide.flatten(4, 5).mean(4), centre)


# the border


def test_a_window_moved_onto_its_neighbour_reads_it_and_the_last_attends_itself():
    module = fixed(build(), offset_x=4 / (11 / 6))  # four pixels of the 4x12 map
    weights = module.attention_map(image(4, 12))
    token = torch.arange(48).view(4, 12)
    assert (weights[:, :, token[:, :4].flatten()][..., token[:, 4:8].flatten()].sum(-1) > 1 - 1e-9).all()
    last = token[:, 8:].flatten()
    torch.testing.assert_close(weights[:, :, last][..., last], torch.eye(16).double().expand(2, 3, -1, -1))


@pytest.mark.parametrize("separate_kv", [False, True])
def test_a_query_with_no_sample_left_attends_itself(separate_kv):
    module, x = fixed(build(separate_kv=separate_kv), offset_y=100.0), image(9, 6)
    x.requires_grad_()
    out = module(x)
    values = x @ module.qkv.weight[24:].T + module.qkv.bias[24:]
    torch.testing.assert_close(out, module.proj(values))
    assert torch.equal(module.attention_map(x), torch.eye(54).double().expand(2, 3, -1, -1))
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in (x, *module.parameters()))


@pytest.mark.parametrize("separate_kv", [False, True])
@pytest.mark.parametrize("hw", [(9, 6), (5, 13)])
def test_no_padding_is_attended_wherever_the_windows_go(separate_kv, hw):
    module = build(separate_kv=separate_kv)
    torch.nn.init.normal_(module.sampling.bias, std=1.0)
    assert not visible(module.points(image(*hw), (4, 4)), *hw)[0].all()
    weights = module.attention_map(image(*hw))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    torch.nn.init.zeros_(module.qkv.weight[24:])  # every value is the bias, padding would be zero
    wanted = module.proj(module.qkv.bias[24:])
    torch.testing.assert_close(module(image(*hw)), wanted.expand(2, *hw, -1))


def test_samples_half_a_pixel_outside_keep_the_border_and_those_further_are_masked():
    x = image(4, 4)
    step = 3 / 2  # pixels per unit of offset on a map of one window
    near, far = (visible(fixed(build(), offset_x=d / step).points(x, (4, 4)), 4, 4)[0] for d in (0.499, 0.501))
    assert near.all()
    assert not far.unflatten(-1, (4, 4))[..., 3].any()
    assert far.unflatten(-1, (4, 4))[..., :3].all()


def test_predictions_that_are_not_finite_leave_the_queries_alone():
    for value in (math.inf, math.nan):
        module, x = fixed(build(), offset_x=value), image(9, 6)
        assert module(x).isfinite().all()


# the rest of the contract


def test_points_are_predicted_from_the_real_pixels_of_a_window():
    module = build()
    x = image(1, 1, batch=1).expand(1, 6, 7, 12)
    points = module.points(x, (4, 4)) - fixed(build()).points(x, (4, 4))
    torch.testing.assert_close(points, points[:, :, :, :1].expand_as(points))


def test_half_precision_keeps_coordinates_in_float32():
    module = fixed(without_tables(build(window_size=7))).to(torch.bfloat16)
    x = image(7, 301, batch=1).to(torch.bfloat16)  # bfloat16 knows no odd number above 256
    assert module.points(x, (7, 7)).dtype == torch.float32
    out, wanted = module(x), module.float()(x.float())
    assert out.dtype == torch.bfloat16
    assert (out.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize("separate_kv", [False, True])
def test_compile_and_export_of_windows_that_moved(separate_kv):
    torch._dynamo.reset()
    module, x = build(separate_kv=separate_kv).eval(), image(9, 6)
    wanted, got = module(x), torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, wanted)
    ours, theirs = (torch.autograd.grad(out.square().sum(), list(module.parameters())) for out in (got, wanted))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), wanted)


def test_flops_count_no_padded_query():
    module = Rvsa(12, 3, window_size=4)
    tokens, windows = 9 * 6, 3 * 2
    assert module.flops(9, 6) == 8 * tokens * 144 + 4 * tokens * 16 * 12 + 4 * tokens * 4 * 12 + 2 * windows * 12 * 15


def test_clamp_logs_once_or_raises(caplog):
    log_once.cache_clear()
    module = Rvsa(12, 3, window_size=9)
    with caplog.at_level(logging.INFO, logger="vantage"):
        for _ in range(3):
            module(torch.randn(1, 4, 20, 12))
    (record,) = caplog.records
    assert record.getMessage() == "rvsa: window_size (9, 9) is clamped to (4, 9) on the 4x20 map"
    with pytest.raises(ValueError, match=r"window_size \(9, 9\) does not fit the 4x20 map.*attention.window_size=4"):
        Rvsa(12, 3, window_size=9, clamp=False)(torch.randn(1, 4, 20, 12))


@pytest.mark.parametrize("size", [0, [3, 3, 3], 3.5, "seven"])
def test_bad_window_sizes_are_named(size):
    with pytest.raises(ValueError, match=r"attention\.window_size="):
        Rvsa(12, 3, window_size=size)


def test_vit_with_every_third_block_global():
    """The slots that configs/attention/rvsa.yaml names: the weights of the projections stay, global blocks too."""
    backbone = build_backbone(
        "vit", "vit_tiny_patch16_224", attention=partial(Rvsa), slots=["blocks.[0134679].attn", "blocks.10.attn"]
    )
    assert backbone.report.native == [f"blocks.{index}.attn" for index in (2, 5, 8, 11)]
    assert {"blocks.0.attn.qkv.weight", "blocks.10.attn.proj.bias"} <= set(backbone.report.reused)
    assert backbone(torch.randn(1, 3, 65, 130)).isfinite().all()

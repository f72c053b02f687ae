"""Multipole attention: softmax in one window, a global field, borders that do not count, its map, costs."""

import itertools
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vantage.attention.base import log_once
from vantage.attention.multipole import Multipole
from vantage.attention.softmax import Softmax
from vantage.attention.window import Window
from vantage.position.rel_bias import RelBias
from vantage.position.rope_axial import RopeAxial

from .dense_reference import randomised

AVERAGES = {"down": "avg_pool", "up": "nearest"}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def image(height=5, width=7, dim=12, batch=2, **options):
    return torch.randn(batch, height, width, dim, dtype=torch.float64, **options)


def same_projections(module, other):
    other.qkv.load_state_dict(module.qkv.state_dict())
    other.proj.load_state_dict(module.proj.state_dict())
    if module.position is not None:
        other.position.load_state_dict(module.position.state_dict())
    return other


@pytest.mark.parametrize("kind", [None, RelBias, RopeAxial])
@pytest.mark.parametrize("keywords", [{"levels": 1}, {}, AVERAGES], ids=str)
def test_a_window_over_the_map_is_softmax_attention(keywords, kind):
    positions = [None if kind is None else kind(4, 3) for _ in range(2)]
    module = randomised(Multipole(12, 3, window_size=7, norm=False, position=positions[0], **keywords))
    if kind is RelBias:  # a table of the window's extent for both
        positions[1].fit((7, 7))
    softmax = same_projections(module, Softmax(12, 3, position=positions[1]).double())
    x = image(7, 7)
    torch.testing.assert_close(module(x), softmax(x))
    module.norm = nn.LayerNorm(12).double()
    torch.testing.assert_close(module(x), softmax(module.norm(x)))


@pytest.mark.parametrize("kind", [None, RelBias, RopeAxial])
def test_one_level_is_window_attention(kind):
    positions = [None if kind is None else kind(4, 3) for _ in range(2)]
    module = randomised(Multipole(12, 3, window_size=3, levels=1, norm=False, position=positions[0]))
    window = same_projections(module, Window(12, 3, window_size=3, position=positions[1]).double())
    x = image(7, 10)
    torch.testing.assert_close(module(x), window(x))
    torch.testing.assert_close(module.attention_map(x), window.attention_map(x))


@pytest.mark.parametrize("keywords", [{}, AVERAGES, {"down": "avg_pool"}, {"up": "nearest"}], ids=str)
@pytest.mark.parametrize("hw", [(8, 8), (5, 9), (1, 13)])
def test_every_output_depends_on_every_pixel(hw, keywords):
    module = randomised(Multipole(12, 3, window_size=2, **keywords))
    x = image(*hw, requires_grad=True)
    out = module(x)
    for y, x_ in ((0, 0), (hw[0] - 1, hw[1] - 1), (hw[0] // 2, hw[1] // 3)):
        (gradient,) = torch.autograd.grad(out[0, y, x_].sum(), x, retain_graph=True)
        assert (gradient[0].abs().amax(-1) > 0).all()
        assert not gradient[1].any()


def test_two_levels_reach_the_windows_of_the_second():
    module = randomised(Multipole(12, 3, window_size=2, levels=2))
    x = image(8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[0, 1, 6].sum(), x)
    reached = gradient[0].abs().amax(-1) > 0
    assert reached[:4, 4:].all()
    assert reached.sum() == 16


@pytest.mark.parametrize(
    ("hw", "window_size", "levels", "sizes"),
    [
        ((56, 56), 7, "auto", [(56, 56), (28, 28), (14, 14), (7, 7)]),
        ((14, 14), 7, "auto", [(14, 14), (7, 7)]),
        ((7, 7), 7, "auto", [(7, 7)]),
        ((57, 30), 7, "auto", [(57, 30), (29, 15), (15, 8), (8, 4), (4, 2)]),
        ((1, 9), 2, "auto", [(1, 9), (1, 5), (1, 3), (1, 2)]),
        ((5, 16), (5, 4), "auto", [(5, 16), (3, 8), (2, 4)]),
        ((56, 56), 7, 2, [(56, 56), (28, 28)]),
        ((8, 8), 7, 9, [(8, 8), (4, 4)]),
        ((9, 3), 1, "auto", [(9, 3), (5, 2), (3, 1), (2, 1), (1, 1)]),
    ],
)
def test_levels_follow_from_the_map(hw, window_size, levels, sizes):
    assert Multipole(4, 1, window_size=window_size, levels=levels).sizes(*hw) == sizes


@pytest.mark.parametrize("hw", [(8, 8), (7, 5), (9, 1)])
@pytest.mark.parametrize("keywords", [AVERAGES, {"up": "nearest"}], ids=str)
def test_a_constant_map_stays_constant(hw, keywords):
    """Also where sizes are odd: what lies beyond the border counts neither in averages nor in down's sums."""
    module = randomised(Multipole(12, 3, window_size=2, **keywords))
    with torch.no_grad():
        if module.down is not None:  # the same for all four pixels: only their number matters
            module.down.weight.copy_(module.down.weight[:, :12].repeat(1, 4))
    out = module(image(1, 1).expand(2, *hw, 12))
    torch.testing.assert_close(out, out[:, :1, :1].expand_as(out))


def test_a_convolution_that_averages_is_the_average():
    pooled = randomised(Multipole(12, 3, window_size=2, **AVERAGES))
    convolved = Multipole(12, 3, window_size=2).double()
    convolved.load_state_dict(pooled.state_dict(), strict=False)
    with torch.no_grad():
        convolved.down.weight.copy_(torch.eye(12).repeat(1, 4) / 4)
        convolved.up.weight.copy_(torch.eye(12).repeat(4, 1))
    for hw in ((8, 8), (9, 7), (1, 6)):
        x = image(*hw)
        torch.testing.assert_close(convolved(x), pooled(x))


def test_down_and_up_are_the_convolutions_of_two_by_two_with_that_stride():
    module = randomised(Multipole(12, 3, window_size=2))
    x = image(6, 8)
    channels_first = x.movedim(-1, 1)
    kernel = module.down.weight.view(12, 2, 2, 12).movedim(-1, 1)  # (out, in, 2, 2)
    torch.testing.assert_close(module.coarser(x), F.conv2d(channels_first, kernel, stride=2).movedim(1, -1))
    fine = image(12, 16)
    kernel = module.up.weight.view(2, 2, 12, 12).permute(3, 2, 0, 1)  # (in, out, 2, 2)
    raised = F.conv_transpose2d(channels_first, kernel, stride=2).movedim(1, -1)
    torch.testing.assert_close(module.add_finer(fine, x, 0.5), fine + raised / 2)
    torch.testing.assert_close(module.add_finer(fine[:, :11, :15], x, 0.5), (fine + raised / 2)[:, :11, :15])


@pytest.mark.parametrize("kind", [None, RelBias, RopeAxial])
@pytest.mark.parametrize("hw", [(8, 8), (9, 5), (1, 7), (2, 2)])
def test_the_map_gives_the_output_where_levels_are_averages(hw, kind):
    position = None if kind is None else kind(4, 3)
    module = randomised(Multipole(12, 3, window_size=2, norm=False, position=position, **AVERAGES))
    x = image(*hw)
    total = 1.0
    for step in range(1, len(module.sizes(*hw))):
        total = 1 + total / step
    v = module.qkv(x)[..., 24:].reshape(2, -1, 3, 4).transpose(1, 2)
    mixed = (module.attention_map(x) @ v).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(total * module.proj(mixed), module(x))


def test_near_tokens_weigh_more_than_far_ones_of_the_same_content():
    module = Multipole(12, 3, window_size=2, **AVERAGES).double()
    weights = module.attention_map(torch.ones(1, 8, 8, 12, dtype=torch.float64))[0, 0, 0].view(8, 8)
    assert weights[0, 0] == weights[1, 1]
    assert weights[1, 1] > weights[2, 2] > weights[4, 4] > 0
    assert weights[2, 2] == weights[3, 0]
    assert weights[4, 4] == weights[7, 0]


def test_attention_norm_and_sampling_are_shared_by_the_levels():
    module = Multipole(64, 2)
    wanted = {"norm": 2 * 64, "qkv": 3 * 64**2 + 3 * 64, "proj": 64**2 + 64, "down": 4 * 64**2, "up": 4 * 64**2}
    assert {name: sum(p.numel() for p in layer.parameters()) for name, layer in module.named_children()} == {
        **wanted,
        "proj_drop": 0,
    }
    averages = Multipole(64, 2, norm=False, qkv_bias=False, **AVERAGES)
    assert sum(p.numel() for p in averages.parameters()) == 4 * 64**2 + 64
    assert Multipole(64, 2, levels=1).down is Multipole(64, 2, levels=1).up is None


def test_convolutions_start_as_those_of_torch():
    module = Multipole(64, 2)
    for weight in (module.down.weight, module.up.weight):
        assert 0.95 / 16 < weight.abs().max().item() <= 1 / 16
        assert abs(weight.mean().item()) < 1e-3


def test_what_a_map_of_one_window_has_no_use_for_gets_a_gradient_of_zero():
    module = Multipole(12, 3)
    module(torch.randn(1, 7, 6, 12)).sum().backward()
    assert not module.down.weight.grad.any()
    assert not module.up.weight.grad.any()


def test_cost_is_linear_in_the_tokens():
    module = Multipole(16, 2, window_size=4, **AVERAGES)
    flops = [module.flops(side, side) for side in (16, 32, 64, 128)]
    ratios = [larger / smaller for smaller, larger in itertools.pairwise(flops)]
    assert all(3.9 < ratio < 4.1 for ratio in ratios)
    assert abs(ratios[-1] - 4) < abs(ratios[0] - 4)


@pytest.mark.parametrize("keywords", [{}, AVERAGES, {"down": "avg_pool"}, {"levels": 2}, {"levels": 1}], ids=str)
def test_flops_are_what_torch_counts_where_windows_divide_the_levels(keywords):
    module = Multipole(24, 3, window_size=(2, 4), **keywords)
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, 8, 16, 24))
    assert module.flops(8, 16) == counter.get_total_flops()


def test_clamp_is_logged_once_or_refused(caplog):
    log_once.cache_clear()
    module = Multipole(8, 2, window_size=4)
    x = torch.randn(1, 3, 9, 8)
    with caplog.at_level(logging.INFO):
        module(x)
        module(x)
    assert [record.getMessage() for record in caplog.records] == [
        "multipole: window_size (4, 4) is clamped to the 3x9 map"
    ]
    with pytest.raises(ValueError, match=r"does not fit the 3x9 map .* use attention\.window_size=3 or attention\.cl"):
        Multipole(8, 2, window_size=4, clamp=False)(x)
    Multipole(8, 2, window_size=3, clamp=False)(x)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"levels": 0}, "multipole: levels 0 is not a whole number"),
        ({"levels": "all"}, "multipole: levels 'all'"),
        ({"down": "nearest"}, "multipole: down 'nearest' is not one of conv, avg_pool"),
        ({"up": "avg_pool"}, "multipole: up 'avg_pool' is not one of conv, nearest"),
        ({"window_size": 0}, "attention.window_size=0"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        Multipole(8, 2, **keywords)

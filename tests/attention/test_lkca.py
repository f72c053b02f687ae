"""LKCA: its two views, a convolution and a matrix between tokens, and kernels on maps of other sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vantage.attention.lkca import Lkca, correlate, spread

from .dense_reference import randomised
from .references.lkca import reference, transforms

MAPS = [(1, 1), (1, 5), (4, 3), (7, 9), (6, 6)]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(dim=6, num_heads=3, **keywords):
    return randomised(Lkca(dim, num_heads, **{"table_size": 4} | keywords))


def bare(**keywords):
    """The kernel alone: neither layer does anything."""
    module = build(**keywords)
    for layer in (module.v, module.proj):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return module


def with_delta(module):
    nn.init.zeros_(module.kernel)
    rows, columns = module.kernel.shape[1:]
    module.kernel.data[:, rows // 2, columns // 2] = 1
    return module


def image(height, width, batch=2, dim=6):
    return torch.randn(batch, height, width, dim, dtype=torch.float64)


# two views


@pytest.mark.parametrize("hw", MAPS, ids=str)
@pytest.mark.parametrize("keywords", [{}, {"kernel_size": 11, "sharing": "channel"}], ids=str)
def test_in_float32_the_convolution_is_the_matrix(keywords, hw):
    module, x = build(**keywords), image(*hw)
    wanted = reference(module, x).detach()
    got = module.float()(x.float()).double()
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("hw", MAPS, ids=str)
@pytest.mark.parametrize("kernels", [1, 3, 6])
def test_between_transforms_it_is_the_convolution_of_the_release(kernels, hw):
    """Which pads by H - 1 and W - 1 and multiplies directly."""
    x, kernel = image(*hw), torch.randn(kernels, 2 * hw[0] - 1, 2 * hw[1] - 1, dtype=torch.float64)
    weight = kernel.repeat_interleave(6 // kernels, 0)[:, None]
    padding = (hw[0] - 1, hw[1] - 1)
    wanted = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=padding, groups=6).permute(0, 2, 3, 1)
    torch.testing.assert_close(correlate(x, kernel), wanted)


@pytest.mark.parametrize("hw", MAPS, ids=str)
def test_a_kernel_beyond_the_map_is_one_over_the_whole_map(hw):
    local = build(kernel_size=17, sharing="head")
    whole = build(table_size=hw, sharing="head")
    whole.load_state_dict(local.state_dict() | {"kernel": whole.kernel})
    whole.kernel.data = local.kernel.data[:, 9 - hw[0] : 8 + hw[0], 9 - hw[1] : 8 + hw[1]].clone()
    x = image(*hw)
    torch.testing.assert_close(local(x), whole(x))


# what a convolution keeps


@pytest.mark.parametrize("keywords", [{}, {"kernel_size": 5}, {"sharing": "channel"}], ids=str)
def test_what_moves_inside_the_map_moves_outside(keywords):
    module = bare(**keywords)
    x = F.pad(image(3, 2), (0, 0, 2, 3, 1, 4))  # (8, 7)
    moved = module(x.roll((2, 1), (1, 2)))
    torch.testing.assert_close(moved[:, 2:, 1:], module(x)[:, :-2, :-1])


@pytest.mark.parametrize("hw", [(4, 4), (1, 1), (3, 2), (1, 4)], ids=str)
@pytest.mark.parametrize("sharing", ["shared", "head", "channel"])
@pytest.mark.parametrize("kernel_size", [None, 3])
def test_a_delta_is_the_identity(kernel_size, sharing, hw):
    x = image(*hw)
    torch.testing.assert_close(with_delta(bare(kernel_size=kernel_size, sharing=sharing))(x), x)


@pytest.mark.parametrize("hw", [(4, 4), (3, 2), (7, 9)], ids=str)
def test_over_the_whole_map_every_token_sees_every_token(hw):
    module, x = bare(), image(*hw, batch=1).requires_grad_()
    out = module(x)
    for y, x_ in [(0, 0), (hw[0] - 1, 0), (hw[0] // 2, hw[1] - 1)]:
        (gradient,) = torch.autograd.grad(out[0, y, x_].sum(), x, retain_graph=True)
        assert (gradient[0].abs().amax(-1) > 1e-6).all()


def test_a_smaller_kernel_sees_its_pixels():
    module, x = bare(kernel_size=3), image(7, 9, batch=1).requires_grad_()
    (gradient,) = torch.autograd.grad(module(x)[0, 2, 5].sum(), x)
    seen = (gradient[0].abs().amax(-1) > 0).nonzero().tolist()
    assert seen == [[y, x_] for y in (1, 2, 3) for x_ in (4, 5, 6)]


@pytest.mark.parametrize(("sharing", "groups"), [("shared", 1), ("head", 3), ("channel", 6)])
@pytest.mark.parametrize("kernel_size", [None, 3])
def test_channels_share_what_they_are_told_to(kernel_size, sharing, groups):
    module = bare(kernel_size=kernel_size, sharing=sharing)
    out = module(image(5, 7, dim=1).expand(-1, -1, -1, 6)).unflatten(-1, (groups, -1))
    torch.testing.assert_close(out, out[..., :1].expand_as(out))
    assert all(not torch.allclose(out[..., 0, :], out[..., group, :]) for group in range(1, groups))


# other maps


@pytest.mark.parametrize(("own", "wanted"), [(4, 4), (4, 1), (1, 5), (4, 7), (4, 6), (9, 4), (14, 56)])
def test_a_kernel_keeps_its_sum_its_centre_and_its_ends(own, wanted):
    shares = spread(own, wanted, CPU, torch.float64)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(0), torch.ones(2 * own - 1, dtype=torch.float64))
    torch.testing.assert_close(shares, shares.flip(0, 1))
    assert shares[:, own - 1].argmax() == wanted - 1
    if own > 1:
        assert shares[:, 0].argmax() == 0
        stretch = (wanted - 1) / (own - 1)
        places = torch.arange(1 - own, own, dtype=torch.float64) * stretch
        centres = torch.arange(1 - wanted, wanted, dtype=torch.float64) @ shares
        inner = slice(1, -1) if wanted > own else slice(None)  # at the ends shares reach inwards only
        torch.testing.assert_close(centres[inner], places[inner], rtol=0, atol=0.2 if stretch % 1 else 1e-9)
    if own == wanted:
        assert torch.equal(shares, torch.eye(2 * own - 1, dtype=torch.float64))


def test_a_finer_map_of_the_same_picture_gives_the_same_picture():
    """A smooth kernel; directly, twice the pixels would give four times the output."""
    module = bare(table_size=8)
    y = torch.linspace(-2, 2, 15, dtype=torch.float64)
    module.kernel.data[0] = torch.exp(-(y[:, None] ** 2) - y**2) / 8
    grid = torch.linspace(-1, 1, 8, dtype=torch.float64)
    coarse = torch.cos(2 * grid)[:, None] * torch.cos(grid)
    grid = torch.linspace(-1, 1, 15, dtype=torch.float64)
    fine = torch.cos(2 * grid)[:, None] * torch.cos(grid)
    of_coarse, of_fine = (module(t[None, :, :, None].expand(1, -1, -1, 6))[0, ..., 0] for t in (coarse, fine))
    torch.testing.assert_close(of_fine[4:-4:2, 4:-4:2], of_coarse[2:-2, 2:-2], rtol=0.1, atol=0)


# start, sizes, refusals


def test_it_starts_close_to_zero_and_is_trained_from_the_first_step():
    module = Lkca(16, 4)
    assert module.kernel.shape == (1, 27, 27)
    assert 0.017 < module.kernel.std() < 0.023
    module(torch.randn(1, 5, 5, 16)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in module.parameters())


def test_parameters_are_those_of_the_release():
    """vit-2m-lkca: 8 x 8 tokens of 192 channels, values without a bias, one kernel."""
    module = Lkca(192, 12, table_size=8, qkv_bias=False)
    assert sum(parameter.numel() for parameter in module.parameters()) == 192 * 192 + (192 * 192 + 192) + 15 * 15


@pytest.mark.parametrize(("sharing", "count"), [("shared", 1), ("head", 4), ("channel", 16)])
def test_kernels_are_as_many_as_share_none(sharing, count):
    assert Lkca(16, 4, sharing=sharing).kernel.shape == (count, 27, 27)
    assert Lkca(16, 4, sharing=sharing, kernel_size=11).kernel.shape == (count, 11, 11)


def test_it_has_no_map():
    with pytest.raises(ValueError, match=r"lkca: .* map"):
        Lkca(8, 2).attention_map(torch.randn(1, 4, 4, 8))


@pytest.mark.parametrize("hw", MAPS, ids=str)
@pytest.mark.parametrize("keywords", [{"table_size": 6}, {"sharing": "channel"}, {"kernel_size": 11}], ids=str)
def test_flops_are_what_torch_counts_and_the_transforms(keywords, hw):
    module = Lkca(24, 2, **keywords)
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(1, *hw, 24))
    assert module.flops(*hw) == counter.get_total_flops() + transforms(module, *hw)


def test_autocast_leaves_the_kernel_of_the_whole_map_in_float32():
    module = Lkca(16, 4, table_size=5)
    v = torch.randn(1, 7, 6, 16)
    wanted = correlate(v, module.whole_map(7, 6))
    with torch.autocast("cpu", torch.bfloat16):
        assert module(v).dtype == torch.bfloat16
    assert module.whole_map(7, 6).dtype == wanted.dtype == torch.float32


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"kernel_size": 4}, "kernel_size 4 is not odd"),
        ({"kernel_size": 0}, "kernel_size 0 is not odd"),
        ({"table_size": 0}, r"attention\.table_size=0"),
        ({"sharing": "group"}, "sharing 'group' is unknown; use one of shared, head, channel"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        Lkca(8, 2, **keywords)

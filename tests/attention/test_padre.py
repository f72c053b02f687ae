"""PADRe: degrees of the polynomial, its bilinear form, and that cropping a kernel to the map changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vantage.attention.convolution import depthwise
from vantage.attention.padre import Padre

from .dense_reference import randomised
from .references.padre import powers

DEGREES = (1, 2, 3)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(dim=6, num_heads=1, **keywords):
    return randomised(Padre(dim, num_heads, **{"kernel_size": 5} | keywords))


def image(height=7, width=4, batch=2, dim=6):
    return torch.randn(batch, height, width, dim, dtype=torch.float64)


# the polynomial


@pytest.mark.parametrize("degree", DEGREES)
def test_without_biases_it_is_homogeneous_of_its_degree(degree):
    module, x = build(degree=degree, qkv_bias=False), image()
    torch.testing.assert_close(module(1.7 * x), 1.7**degree * module(x))
    torch.testing.assert_close(module(-x), (-1) ** degree * module(x))


def test_every_power_on_the_way_is_homogeneous_of_its_degree():
    module, x = build(degree=3, qkv_bias=False), image()
    for degree, (of_x, of_more) in enumerate(zip(powers(module, x), powers(module, 1.7 * x)), start=1):
        torch.testing.assert_close(of_more, 1.7**degree * of_x)


def test_of_degree_one_it_is_affine():
    module, x, y = build(degree=1), image(), image()
    zero = module(torch.zeros_like(x))
    assert zero.abs().max() > 0.1
    torch.testing.assert_close(module(x + y) + zero, module(x) + module(y))


def test_of_degree_two_its_cross_term_is_bilinear():
    module = build(degree=2, qkv_bias=False)
    x, y, z = image(), image(), image()

    def cross(a, b):
        return module(a + b) - module(a) - module(b)

    assert cross(x, y).abs().max() > 0.1
    torch.testing.assert_close(cross(x + z, y), cross(x, y) + cross(z, y))
    torch.testing.assert_close(cross(x, y + z), cross(x, y) + cross(x, z))
    torch.testing.assert_close(cross(3 * x, y), 3 * cross(x, y))
    torch.testing.assert_close(cross(x, x), 2 * module(x))


def test_biases_add_the_lower_degrees():
    """Third differences of a polynomial of degree two vanish, and the others do not."""
    module, x = build(degree=2), image()
    values = [module(step * x) for step in range(4)]
    assert values[0].abs().max() > 0.01
    assert (values[1] - values[0] - values[2] + values[1]).abs().max() > 0.01
    torch.testing.assert_close(values[3] - 3 * values[2] + 3 * values[1], values[0])


@pytest.mark.parametrize("degree", DEGREES)
def test_of_identities_it_is_a_power_entry_by_entry(degree):
    module, x = build(degree=degree), image()
    for mix, copies in [(module.factors, degree), *((step, 1) for step in module.steps)]:
        nn.init.zeros_(mix.channels.bias)
        nn.init.zeros_(mix.tokens.bias)
        nn.init.dirac_(mix.tokens.weight, groups=copies * 6)
        mix.channels.weight.data.copy_(torch.eye(6).repeat(copies, 1))
    torch.testing.assert_close(module(x), x**degree)


# the map


@pytest.mark.parametrize("hw", [(1, 1), (1, 9), (4, 2), (6, 7), (12, 5)])
@pytest.mark.parametrize("kernel_size", [1, 3, 11])
def test_a_cropped_kernel_gives_what_the_whole_one_gives(hw, kernel_size):
    x = image(*hw).requires_grad_()
    convolution = nn.Conv2d(6, 6, kernel_size, padding=kernel_size // 2, groups=6, dtype=torch.float64)
    wanted = F.conv2d(x.permute(0, 3, 1, 2), convolution.weight, convolution.bias, padding="same", groups=6)
    got = depthwise(x, convolution.weight.squeeze(1), convolution.bias)
    torch.testing.assert_close(got, wanted.permute(0, 2, 3, 1))
    cotangent = torch.randn_like(got)
    leaves = (x, convolution.weight)
    for ours, theirs in zip(
        torch.autograd.grad(got, leaves, cotangent),
        torch.autograd.grad(wanted, leaves, cotangent.permute(0, 3, 1, 2)),
    ):
        torch.testing.assert_close(ours, theirs)


def test_it_moves_with_the_map_away_from_the_border():
    module, x = build(kernel_size=3), image(12, 12)
    moved = module(x.roll((1, 2), (1, 2)))
    torch.testing.assert_close(moved[:, 3:-2, 4:-2], module(x)[:, 2:-3, 2:-4])


def test_every_further_degree_sees_further():
    for degree, reach in [(1, 1), (2, 2), (3, 3)]:
        x = image(9, 9, batch=1).requires_grad_()
        (gradient,) = torch.autograd.grad(build(degree=degree, kernel_size=3)(x)[0, 4, 4].sum(), x)
        seen = gradient[0].abs().sum(-1) > 0
        assert seen.any(1).nonzero().flatten().tolist() == list(range(4 - reach, 5 + reach))


@pytest.mark.parametrize("degree", DEGREES)
def test_flops_are_linear_in_the_tokens(degree):
    module = Padre(16, 1, degree=degree)
    assert module.flops(128, 16) == 4 * module.flops(32, 16)
    assert module.flops(128, 16) == (2 * degree - 1) * (2 * 2048 * 16**2 + 2 * 2048 * 16 * 121)


# start, sizes, refusals


@pytest.mark.parametrize(("degree", "share"), [(1, 1 / 3), (2, 1 / 27), (3, 1 / 243)])
def test_later_factors_start_small(degree, share):
    x = torch.randn(1, 44, 44, 32)
    inside = slice(15, -15)  # where no tap of three convolutions lies outside
    deviation = Padre(32, 1, degree=degree, qkv_bias=False)(x)[:, inside, inside].std()
    assert 0.8 * share < deviation < 1.2 * share
    assert Padre(32, 1, degree=degree)(x)[:, inside, inside].std() < max(1.5 * share, 0.04)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_are_as_many_as_the_formula_says(degree, bias):
    module = Padre(24, 3, degree=degree, qkv_bias=bias)
    count = sum(parameter.numel() for parameter in module.parameters())
    assert count == (2 * degree - 1) * (24**2 + 121 * 24 + bias * 2 * 24)


def test_heads_change_nothing():
    one, three = build(num_heads=1), build(num_heads=3)
    three.load_state_dict(one.state_dict())
    x = image()
    assert torch.equal(one(x), three(x))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"degree": 0}, "degree 0 is no positive integer"),
        ({"degree": 1.5}, r"degree 1\.5 is no positive integer"),
        ({"kernel_size": 4}, "attention.kernel_size=4 is not odd"),
        ({"kernel_size": -3}, "attention.kernel_size=-3 is not odd"),
    ],
)
def test_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        Padre(8, 2, **keywords)

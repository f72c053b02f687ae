"""Resizing on a line is F.interpolate's, on a circle that of the periodic picture, and goes by rows and planes too."""

import pytest
import torch
from torch.nn import functional as F

from vantage.tasks.segmentation.resize import Resize, resize, resize_planes, resize_rows

SIZES = [  # from, to
    ((5, 8), (10, 16)),
    ((5, 8), (20, 32)),
    ((6, 9), (13, 22)),
    ((13, 22), (6, 9)),
    ((12, 12), (5, 4)),
    ((7, 10), (7, 25)),
    ((7, 10), (11, 10)),
    ((1, 1), (4, 6)),
    ((4, 3), (1, 1)),
    ((3, 64), (3, 48)),
]


def maps(size, dtype=torch.float64):
    torch.manual_seed(sum(size))
    return torch.randn(2, 3, *size, dtype=dtype)


def rows_of(x, *args, **options):
    return resize_rows(lambda first, stop: x[..., first:stop, :], x.shape[-2], *args, **options)


@pytest.mark.parametrize(("size", "to"), SIZES)
@pytest.mark.parametrize("options", [{}, {"antialias": True}, {"mode": "bicubic"}])
def test_on_a_circle_the_middle_of_the_periodic_picture(size, to, options):
    x, turns = maps(size), 7
    settings = {"mode": "bilinear", "align_corners": False} | options
    periodic = F.interpolate(x.repeat(1, 1, 1, turns), (to[0], turns * to[1]), **settings)
    expected = periodic[..., turns // 2 * to[1] : (turns // 2 + 1) * to[1]]
    torch.testing.assert_close(resize(x, to, wraps=True, **options), expected, rtol=1e-11, atol=1e-11)
    line = F.interpolate(x, to, **settings)
    torch.testing.assert_close(resize(x, to, **options), line, rtol=0, atol=0)
    if size[1] < to[1] and size[1] > 1:
        assert not torch.allclose(line, expected)


@pytest.mark.parametrize(("width", "to", "parts"), [(12, 48, 12), (12, 20, 4), (20, 12, 4), (10, 4, 2), (9, 15, 3)])
def test_what_is_rolled_before_is_rolled_after(width, to, parts):
    x = maps((5, width))
    rolled = resize(x.roll(width // parts, -1), (7, to), wraps=True)
    expected = resize(x, (7, to), wraps=True).roll(to // parts, -1)
    torch.testing.assert_close(rolled, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("size", "to"), SIZES)
@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_rows_of_the_result_are_those_of_the_whole(size, to, wraps, rows):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x = maps(size, dtype)
        bands = [rows_of(x, to, start, min(start + rows, to[0]), wraps=wraps) for start in range(0, to[0], rows)]
        torch.testing.assert_close(torch.cat(bands, -2), resize(x, to, wraps=wraps), rtol=0, atol=tolerance)


def test_rows_far_from_the_first_lie_where_they_should():
    x = torch.randn(1, 2, 700, 3)
    exact = F.interpolate(x.double(), (2047, 5), mode="bilinear")[..., 1990:, :]
    torch.testing.assert_close(rows_of(x, (2047, 5), 1990, 2047).double(), exact, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("size", "to"), SIZES)
def test_planes_are_resized_as_maps_are(size, to):
    x = maps(size, torch.float32)
    torch.testing.assert_close(resize_planes(x, to), F.interpolate(x, to, mode="bilinear"), rtol=0, atol=1e-6)
    assert resize_planes(x, to).is_contiguous()


def test_the_module_learns_to_wrap_and_keeps_the_type():
    module, x = Resize(), maps((4, 6))
    assert torch.equal(module(x, (8, 12)), resize(x, (8, 12)))
    module.wraps = True
    assert torch.equal(module(x, (8, 12)), resize(x, (8, 12), wraps=True))
    assert module(x.bfloat16(), (8, 15)).dtype == torch.bfloat16
    assert module(x, (4, 6)) is x
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, (5, 15)), (x[:1, :1],))

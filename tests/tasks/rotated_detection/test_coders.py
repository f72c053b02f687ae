"""Coders: the reference page's oracle values, round trips, and what degenerate numbers decode to."""

import math

import pytest
import torch

from vantage.ops.rotated_boxes import canonical, enclosing_xyxy, to_corners
from vantage.tasks.rotated_detection.coders import DeltaCoder, MidpointOffsetCoder, wrap


def random_boxes(count, seed=0, low=4.0, high=60.0):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 200
    sides = low + torch.rand(count, 2, generator=generator, dtype=torch.float64) * (high - low)
    angle = (torch.rand(count, 1, generator=generator, dtype=torch.float64) - 0.5) * math.pi
    return canonical(torch.cat([centre, sides, angle], 1))


def assert_same_rectangles(found, expected, atol=1e-4):
    """Equal as sets of corners: a rectangle can be written in several ways."""
    distance = (to_corners(found)[:, :, None] - to_corners(expected)[:, None]).norm(dim=-1)
    assert distance.amin(2).max() < atol
    assert distance.amin(1).max() < atol


@pytest.mark.parametrize(
    ("anchor", "deltas", "expected"),
    [
        ((0, 0, 1, 1), (0, 0, 0, 0, 0, 1), (0.5, 0.5, 0.5412, 1.3066, -0.3927)),
        ((0, 0, 2, 2), (1, 1, 1, 1, 0, 0), (3, 3, 3.8442, 3.8442, -0.7854)),
    ],
)
def test_midpoint_offsets_decode_to_the_values_of_the_reference_page(anchor, deltas, expected):
    anchor, deltas, expected = (torch.tensor([values], dtype=torch.float64) for values in (anchor, deltas, expected))
    assert_same_rectangles(MidpointOffsetCoder().decode(anchor, deltas), expected)


def test_midpoint_offsets_bring_boxes_back():
    boxes = random_boxes(500)
    upright = enclosing_xyxy(random_boxes(500, seed=1))
    coder = MidpointOffsetCoder()
    # nearly upright boxes are taken for upright ones, which is off by at most a thousandth of their size
    assert_same_rectangles(coder.decode(upright, coder.encode(upright, boxes)), boxes, atol=0.1)


@pytest.mark.parametrize("angle", [0.0, -math.pi / 2, 1e-7, -1e-5, 9e-4, math.pi / 4])
def test_midpoint_offsets_of_upright_boxes_are_at_a_corner(angle):
    """Where a whole edge touches, its far end is meant: +1/2 after the division by the deviation of 1/2 is 1."""
    boxes = torch.tensor([[50.0, 40, 30, 10, angle]], dtype=torch.float64)
    coder = MidpointOffsetCoder()
    upright = enclosing_xyxy(boxes)
    deltas = coder.encode(upright, boxes)
    if angle != math.pi / 4:
        torch.testing.assert_close(deltas[0, 4:], torch.ones(2, dtype=torch.float64), atol=1e-4, rtol=0)
    assert_same_rectangles(coder.decode(upright, deltas), boxes, atol=0.04)


@pytest.mark.parametrize("stds", [(1.0,) * 5, (0.1, 0.1, 0.2, 0.2, 0.1)])
@pytest.mark.parametrize("swap_edges", [True, False])
def test_deltas_bring_boxes_back(stds, swap_edges):
    boxes, anchors = random_boxes(500, low=20), random_boxes(500, seed=1, low=20)
    coder = DeltaCoder(stds, swap_edges=swap_edges)
    assert_same_rectangles(canonical(coder.decode(anchors, coder.encode(anchors, boxes))), boxes)


def test_swapping_edges_turns_at_most_an_eighth():
    boxes, anchors = random_boxes(500), random_boxes(500, seed=1)
    assert DeltaCoder().encode(anchors, boxes)[:, 4].abs().max() <= math.pi / 4 + 1e-9


def test_deltas_are_in_the_anchors_own_frame():
    """Moved along its own w by a quarter of w, whatever its angle."""
    anchors = random_boxes(50)
    shift = torch.stack([anchors[:, 4].cos(), anchors[:, 4].sin()], 1) * anchors[:, 2:3] / 4
    moved = torch.cat([anchors[:, :2] + shift, anchors[:, 2:]], 1)
    expected = torch.tensor([0.25, 0, 0, 0, 0], dtype=torch.float64).expand(50, -1)
    torch.testing.assert_close(DeltaCoder().encode(anchors, moved), expected, atol=1e-9, rtol=0)


def test_wild_deltas_stay_finite_with_finite_gradients():
    generator = torch.Generator().manual_seed(0)
    anchors = random_boxes(100).float()
    for coder, first, numbers in ((DeltaCoder(), anchors, 5), (MidpointOffsetCoder(), enclosing_xyxy(anchors), 6)):
        for scale in (0.0, 1.0, 1e3):
            deltas = (torch.randn(100, numbers, generator=generator) * scale).requires_grad_()
            boxes = coder.decode(first, deltas)
            assert boxes.isfinite().all()
            boxes.sum().backward()
            assert deltas.grad.isfinite().all()
    sliver = torch.tensor([[10.0, 10, 1e-4, 30, 0.2], [5, 5, 0, 0, 0]])
    for coder, first in ((DeltaCoder(), anchors[:2]), (MidpointOffsetCoder(), enclosing_xyxy(anchors[:2]))):
        assert coder.encode(first, sliver).isfinite().all()


def test_wrap_is_the_same_line():
    angles = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    wrapped = wrap(angles)
    assert wrapped.min() >= -math.pi / 2
    assert wrapped.max() < math.pi / 2
    torch.testing.assert_close((2 * wrapped).cos(), (2 * angles).cos())
    torch.testing.assert_close((2 * wrapped).sin(), (2 * angles).sin())

"""Conversions: one convention, and torchvision's beside it."""

import math

import pytest
import torch
from torchvision.ops import box_convert

from vantage.ops.rotated_boxes import (
    canonical,
    convex_hull,
    enclosing_xyxy,
    from_corners,
    from_cxcywhr_degrees,
    to_corners,
    to_cxcywhr_degrees,
)

from .cases import boxes_like, random_boxes

HALF_PI = math.pi / 2


def test_corners_run_clockwise_on_the_screen_from_the_boxs_own_top_left():
    corners = to_corners(boxes_like([[10, 20, 6, 4, 0], [10, 20, 6, 4, HALF_PI]]))
    assert corners[0].tolist() == [[7, 18], [13, 18], [13, 22], [7, 22]]
    # the x axis turned towards y: the w-edge runs down the screen
    torch.testing.assert_close(corners[1], torch.tensor([[12.0, 17], [12, 23], [8, 23], [8, 17]]))


def test_corners_are_torchvisions():
    boxes = random_boxes(200, torch.float64)
    wanted = box_convert(to_cxcywhr_degrees(boxes), "cxcywhr", "xyxyxyxy").reshape(-1, 4, 2)
    torch.testing.assert_close(to_corners(boxes), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_canonical_is_the_same_rectangle(dtype):
    boxes = random_boxes(500, dtype)
    boxes[:, 4] *= 4
    result = canonical(boxes)
    assert (result[:, 2] >= result[:, 3]).all()
    limit = torch.tensor(HALF_PI, dtype=dtype)
    assert ((result[:, 4] >= -limit) & (result[:, 4] < limit)).all()
    before, after = (to_corners(b.double()) for b in (boxes, result))
    assert torch.cdist(before, after).amin(-1).max() < (1e-3 if dtype == torch.float32 else 1e-10)
    assert torch.equal(canonical(result), result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_canonical_at_the_ends_of_the_range(dtype):
    limit = torch.tensor(HALF_PI, dtype=dtype)
    after, before = (torch.nextafter(limit, torch.tensor(end, dtype=dtype)) for end in (9.0, 0.0))
    angles = torch.stack((limit, -limit, after, -after, before, -before, 2 * limit, -2 * limit, 3 * limit, -3 * limit))
    boxes = torch.cat((boxes_like([[0, 0, 2, 1, 0]], dtype)[:, :4].expand(len(angles), 4), angles[:, None]), 1)
    for given in (boxes, boxes[:, [0, 1, 3, 2, 4]]):
        result = canonical(given)[:, 4]
        assert ((result >= -limit) & (result < limit)).all()
        kept = (angles >= -limit) & (angles < limit)
        if given is boxes:
            assert torch.equal(result[kept], angles[kept])


def test_canonical_of_what_torchvision_leaves_after_a_flip():
    result = from_cxcywhr_degrees(torch.tensor([[5.0, 5, 8, 2, 230]]))
    torch.testing.assert_close(torch.rad2deg(result[0, 4]), torch.tensor(-50.0))


def test_degrees_there_and_back():
    boxes = canonical(random_boxes(100, torch.float64))
    torch.testing.assert_close(from_cxcywhr_degrees(to_cxcywhr_degrees(boxes)), boxes)
    assert to_cxcywhr_degrees(boxes_like([[1, 2, 3, 4, HALF_PI / 2]]))[0, 4] == -45


def test_a_tv_tensor_is_converted_to_a_plain_tensor():
    from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

    boxes = BoundingBoxes(torch.tensor([[5.0, 5, 8, 2, 30]]), format=BoundingBoxFormat.CXCYWHR, canvas_size=(9, 9))
    assert type(from_cxcywhr_degrees(boxes)) is torch.Tensor
    with pytest.raises(ValueError, match=r"BoundingBoxes of torchvision, .*degrees; convert it with from_cxcywhr_deg"):
        to_corners(boxes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rectangles_there_and_back_by_their_corners(dtype):
    boxes = canonical(random_boxes(300, dtype))
    corners = to_corners(boxes)
    for turned in (corners, corners.roll(1, 1), corners.flip(1)):
        result = from_corners(turned)
        near = torch.cdist(to_corners(result.double()), corners.double()).amin(-1).max()
        assert near < (1e-4 if dtype == torch.float32 else 1e-10)
        torch.testing.assert_close(result[:, 2:4], boxes[:, 2:4], rtol=1e-4, atol=1e-4)


def test_smallest_rectangle_of_the_page():
    box = from_corners(torch.tensor([[1.0, 1], [3, 1], [8, 8], [1, 3]]))
    wanted = torch.tensor([[8, 8], [2.3243, 0.0541], [0.0541, 1.6757], [5.7297, 9.6216]])
    distances = torch.cdist(to_corners(box), wanted)
    assert (distances.amin(0) < 1e-4).all()
    assert (distances.amin(1) < 1e-4).all()


@pytest.mark.parametrize("count", [3, 4, 7, 12, 13, 60])
def test_smallest_rectangle_against_shapely(count):
    shapely = pytest.importorskip("shapely", reason="the oracle is shapely (pip install -e '.[dev]')")
    points = torch.randn(40, count, 2, dtype=torch.float64) * torch.tensor((30.0, 8.0))
    boxes = from_corners(points)
    wanted = shapely.area(shapely.oriented_envelope(shapely.multipoints(points.numpy())))
    torch.testing.assert_close(boxes[:, 2] * boxes[:, 3], torch.from_numpy(wanted))
    x, y = (points - boxes[:, None, :2]).unbind(-1)
    cos, sin = boxes[:, 4:].cos(), boxes[:, 4:].sin()
    assert ((cos * x + sin * y).abs().amax(1) <= boxes[:, 2] / 2 + 1e-9).all()
    assert ((cos * y - sin * x).abs().amax(1) <= boxes[:, 3] / 2 + 1e-9).all()


def test_points_on_a_line_and_a_single_point():
    line = from_corners(torch.tensor([[1.0, 1], [5, 5], [3, 3], [1, 1]]))
    torch.testing.assert_close(line, torch.tensor([3, 3, 32**0.5, 0, math.pi / 4]))
    assert from_corners(torch.full((4, 2), 7.0)).tolist() == [7, 7, 0, 0, 0]
    assert from_corners(torch.tensor([[7.0, 8]])).tolist() == [7, 8, 0, 0, 0]
    assert from_corners(torch.empty(0, 4, 2)).shape == (0, 5)
    assert from_corners(torch.empty(0, 40, 2)).shape == (0, 5)
    assert from_corners(torch.rand(2, 3, 4, 2)).shape == (2, 3, 5)


def test_the_rectangle_is_differentiable():
    corners = to_corners(random_boxes(3, torch.float64)) + torch.randn(3, 4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(from_corners, corners.requires_grad_())
    assert torch.autograd.gradcheck(canonical, random_boxes(3, torch.float64).requires_grad_())
    assert torch.autograd.gradcheck(to_corners, random_boxes(3, torch.float64).requires_grad_())


def test_hull_against_shapely():
    shapely = pytest.importorskip("shapely", reason="the oracle is shapely (pip install -e '.[dev]')")
    points = torch.randint(0, 12, (80, 2)).double()  # many are equal, many on one line
    hull = convex_hull(points)
    wanted = shapely.convex_hull(shapely.multipoints(points.numpy()))
    assert shapely.equals(shapely.polygons(hull.numpy()), wanted)
    assert len(hull) == len(shapely.get_coordinates(wanted)) - 1
    assert shapely.is_ccw(shapely.linearrings(hull.numpy()))  # with y up; clockwise on the screen
    assert hull[0].tolist() == min(points.tolist())
    assert convex_hull(torch.tensor([[2.0, 2], [1, 1], [2, 2]])).tolist() == [[1, 1], [2, 2]]
    assert convex_hull(torch.empty(0, 2)).shape == (0, 2)


def test_enclosing_boxes():
    boxes = random_boxes(100, torch.float64)
    corners = to_corners(boxes)
    torch.testing.assert_close(enclosing_xyxy(boxes), torch.cat((corners.amin(1), corners.amax(1)), 1))


@pytest.mark.parametrize("function", [canonical, to_corners, enclosing_xyxy, to_cxcywhr_degrees, from_cxcywhr_degrees])
def test_refusals(function):
    name = function.__name__
    with pytest.raises(ValueError, match=rf"{name}: boxes has shape \(2, 4\); its last size must be 5 \(cx, cy, w"):
        function(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=rf"{name}: boxes is torch.bfloat16, which rounds pixels; use float32 or"):
        function(torch.zeros(2, 5, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=rf"{name}: boxes is a list; use a torch.Tensor"):
        function([[1, 2, 3, 4, 5]])


def test_refused_points():
    with pytest.raises(ValueError, match=r"from_corners: points has shape \(3, 8\); its last size must be 2 \(x, y\)"):
        from_corners(torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"from_corners: points have shape \(0, 2\); use \(..., P, 2\) with P >= 1"):
        from_corners(torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"convex_hull: points have shape \(1, 4, 2\); use \(P, 2\)"):
        convex_hull(torch.zeros(1, 4, 2))

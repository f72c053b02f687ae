"""Points in rotated boxes: shapely, the border, both backends."""

import math

import pytest
import torch

from vantage.ops.rotated_boxes import points_in_rotated_boxes, reference, to_corners

from .cases import both_backends, boxes_like, random_boxes


@both_backends
def test_against_shapely(backend, monkeypatch):
    shapely = pytest.importorskip("shapely", reason="the oracle is shapely (pip install -e '.[dev]')")
    monkeypatch.setattr(reference, "CHUNK_DISTANCES", 500)
    points, boxes = torch.rand(300, 2) * 80 - 10, random_boxes(40)
    inside = points_in_rotated_boxes(points, boxes, backend=backend)
    polygons = shapely.polygons(to_corners(boxes.double()).numpy())
    wanted = shapely.intersects(shapely.points(points.double().numpy())[:, None], polygons)
    assert inside.shape == (300, 40)
    assert torch.equal(inside, torch.from_numpy(wanted))


@both_backends
def test_the_border_is_inside(backend):
    boxes = boxes_like([[4, 4, 4, 2, 0], [1e6, 1e6, 4, 2, 0]], torch.float64)
    points = torch.tensor([[2.0, 4], [6, 5], [6.001, 4], [4, 2.999]], dtype=torch.float64)
    for column, shift in enumerate((0, 1e6 - 4)):
        inside = points_in_rotated_boxes(points + shift, boxes, backend=backend)[:, column]
        assert inside.tolist() == [True, True, False, False]
    turned = boxes_like([[4, 4, 4, 2, math.pi / 2]])
    points = torch.tensor([[4.0, 5.9], [4.9, 4.0], [5.9, 4.0]])
    assert points_in_rotated_boxes(points, turned, backend=backend)[:, 0].tolist() == [True, True, False]


@both_backends
def test_nothing_and_nan(backend):
    assert points_in_rotated_boxes(torch.empty(0, 2), random_boxes(3), backend=backend).shape == (0, 3)
    assert points_in_rotated_boxes(torch.rand(4, 2), torch.empty(0, 5), backend=backend).shape == (4, 0)
    nan = float("nan")
    boxes = boxes_like([[0, 0, nan, 2, 0], [0, nan, 2, 2, 0], [0, 0, 2, 2, nan], [0, 0, -2, 2, 0], [0, 0, 2, 2, 0]])
    points = torch.tensor([[0.1, 0.1], [nan, 0]])
    wanted = [[False, False, False, False, True], [False] * 5]
    assert points_in_rotated_boxes(points, boxes, backend=backend).tolist() == wanted


def test_refusals():
    with pytest.raises(ValueError, match=r"points has shape \(3, 3\); use \(N, 2\) with columns x, y"):
        points_in_rotated_boxes(torch.zeros(3, 3), random_boxes(2))
    with pytest.raises(ValueError, match=r"points is torch.float64 and boxes is torch.float32; give them one dtype"):
        points_in_rotated_boxes(torch.zeros(3, 2, dtype=torch.float64), random_boxes(2))

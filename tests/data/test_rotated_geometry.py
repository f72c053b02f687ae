import numpy as np
import pytest

from vantage.data.rotated_geometry import clip, crosses_itself, polygon_area, window_share


def quadrilaterals(count, seed=0, spread=60.0):
    """Rectangles of any angle and size around a window of 100."""
    rng = np.random.default_rng(seed)
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    angle = rng.uniform(0, 2 * np.pi, count)
    turn = np.stack([np.stack([np.cos(angle), np.sin(angle)], -1), np.stack([-np.sin(angle), np.cos(angle)], -1)], 1)
    corners = (signs * rng.uniform(1, spread, (count, 1, 2))) @ turn
    return corners + rng.uniform(-20, 120, (count, 1, 2))


def test_window_share_agrees_with_shapely():
    geometry = pytest.importorskip("shapely.geometry", reason="the dev extra has shapely")
    corners = quadrilaterals(2000)
    window = (0.0, 0.0, 100.0, 80.0)
    box = geometry.box(*window)
    polygons = [geometry.Polygon(points) for points in corners]
    expected = np.array([polygon.intersection(box).area / polygon.area for polygon in polygons])
    shares = window_share(corners, window)
    assert np.abs(shares - expected).max() < 1e-9
    assert (shares == 1).any()
    assert (shares == 0).any()
    assert ((shares > 0) & (shares < 1)).sum() > 500


def test_window_share_by_hand():
    square = [[0, 0], [10, 0], [10, 10], [0, 10]]
    diamond = [[5, 0], [10, 5], [5, 10], [0, 5]]
    assert window_share([square], (2.5, 0, 100, 100)).tolist() == [0.75]
    assert window_share([square, diamond], (5, 5, 100, 100)).tolist() == [0.25, 0.25]
    assert window_share([square], (10, 0, 20, 10)).tolist() == [0.0]  # touches
    assert window_share(np.zeros((0, 4, 2)), (0, 0, 1, 1)).shape == (0,)
    assert window_share([[[3, 3]] * 4], (0, 0, 10, 10)).tolist() == [1.0]  # a point, inside
    # a dart is not convex
    dart = [[0, 0], [10, 5], [0, 10], [4, 5]]
    assert window_share([dart], (4, 0, 10, 10))[0] == pytest.approx(18 / 30)


def test_area_far_from_the_origin_is_exact():
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) + 1e7
    assert polygon_area(square) == 1.0
    assert polygon_area([square, square * 1.0]).tolist() == [1.0, 1.0]


def test_what_crosses_itself():
    assert crosses_itself([[0, 0], [10, 10], [10, 0], [0, 10]])
    assert crosses_itself([[0, 0], [10, 0], [0, 10], [10, 10]])
    assert not crosses_itself([[0, 0], [10, 0], [10, 10], [0, 10]])
    assert not crosses_itself([[0, 0], [0, 10], [10, 10], [10, 0]])  # the other way around
    assert not crosses_itself([[0, 0], [10, 5], [0, 10], [4, 5]])  # a dart
    assert not crosses_itself([[0, 0], [5, 0], [10, 0], [5, 0]])  # a line, without area


def test_clip_keeps_the_corner_of_a_window_inside_a_polygon():
    big = np.array([[-100.0, -100], [300, -100], [300, 300], [-100, 300]])
    assert polygon_area(clip(big, (0, 0, 7, 5))) == 35

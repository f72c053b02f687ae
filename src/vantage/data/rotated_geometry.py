"""Quadrilaterals in pixels: their area, whether they cross themselves, and how much of them a window shows."""

import numpy as np
from numpy.typing import ArrayLike

Window = tuple[float, float, float, float]  # left, top, right, bottom


def polygon_area(points: ArrayLike) -> np.ndarray:
    """Shoelace, unsigned: (..., P, 2) -> (...). Without meaning for a polygon that crosses itself."""
    points = np.asarray(points, dtype=np.float64)
    points = points - points[..., :1, :]  # near the origin, so that huge coordinates cancel exactly
    x, y = points[..., 0], points[..., 1]
    return np.abs((x * np.roll(y, -1, -1) - y * np.roll(x, -1, -1)).sum(-1)) / 2


def crosses_itself(quadrilateral: ArrayLike) -> bool:
    """Whether two opposite sides of a quadrilateral (4, 2) cut each other."""
    a, b, c, d = np.asarray(quadrilateral, dtype=np.float64)
    return _cross(a, b, c, d) or _cross(b, c, d, a)


def _cross(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> bool:
    """Whether the open segments ab and cd cut each other in one point."""

    def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def window_share(corners: ArrayLike, window: Window) -> np.ndarray:
    """The share of each polygon's area that lies inside the window, border included: (N, P, 2) -> (N,) in 0..1."""
    corners = np.asarray(corners, dtype=np.float64)
    if not len(corners):
        return np.zeros(0)
    left, top, right, bottom = window
    low, high = corners.min(1), corners.max(1)  # (N, 2)
    inside = (low >= (left, top)).all(1) & (high <= (right, bottom)).all(1)
    outside = (high <= (left, top)).any(1) | (low >= (right, bottom)).any(1)
    shares = inside.astype(np.float64)
    for i in np.flatnonzero(~inside & ~outside):
        area = polygon_area(corners[i])
        shares[i] = min(polygon_area(clip(corners[i], window)) / area, 1.0) if area > 0 else 0.0
    return shares


def clip(polygon: np.ndarray, window: Window) -> np.ndarray:
    """The part of a polygon (P, 2) inside the window (Sutherland and Hodgman, 1974), (Q, 2), at least one point."""
    points = polygon.tolist()
    left, top, right, bottom = window
    for axis, bound, sign in ((0, left, 1), (0, right, -1), (1, top, 1), (1, bottom, -1)):
        kept = []
        for i, current in enumerate(points):
            previous = points[i - 1]
            depth, depth_before = sign * (current[axis] - bound), sign * (previous[axis] - bound)
            if (depth >= 0) != (depth_before >= 0):
                t = depth_before / (depth_before - depth)
                kept.append([previous[k] + t * (current[k] - previous[k]) for k in (0, 1)])
            if depth >= 0:
                kept.append(current)
        points = kept
    return np.asarray(points or [[left, top]])

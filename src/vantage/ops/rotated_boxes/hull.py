"""Rectangles around points: the smallest one of any number of points, and the convex hull, without OpenCV.

The smallest rectangle has a side on an edge of the convex hull (Freeman and Shapira, 1975), and no other direction has
a smaller one: for a few points all pairs serve as directions, for more the edges of their hull.
"""

import torch
from torch import Tensor

from vantage.ops.rotated_boxes.boxes import canonical, check_last

ALL_PAIRS_TO = 12  # points


def from_corners(points: Tensor) -> Tensor:
    """The canonical rectangle of least area around each set of points: (..., P, 2) -> (..., 5), any P >= 1.

    For the corners of a rectangle that is the rectangle. Points on one line give h = 0, a single point w = h = 0.
    Computed in float64 and returned in the points' dtype; differentiable while the rectangle keeps its side.
    """
    check_last("from_corners", "points", points, 2)
    if points.dim() < 2 or points.shape[-2] == 0:
        raise ValueError(f"from_corners: points have shape {tuple(points.shape)}; use (..., P, 2) with P >= 1 points")
    leading, count = points.shape[:-2], points.shape[-2]
    sets = points.reshape(-1, count, 2).double()
    if count > ALL_PAIRS_TO:
        # hulls differ in length
        boxes = [around_edges(hull[None], hull.roll(-1, 0)[None] - hull) for hull in map(hull_of, sets)]
        boxes = torch.cat(boxes) if boxes else sets.new_zeros(0, 5)
    else:
        first, second = torch.triu_indices(count, count, offset=min(1, count - 1), device=points.device)
        boxes = around_edges(sets, sets[:, second] - sets[:, first])
    return canonical(boxes.to(points.dtype)).reshape(*leading, 5)


def around_edges(points: Tensor, edges: Tensor) -> Tensor:
    """Smallest of the rectangles around (B, P, 2) points with a side along one of (B, E, 2) edges: (B, 5)."""
    origin = points.mean(1, keepdim=True)
    x, y = (points - origin).unsqueeze(1).unbind(-1)  # (B, 1, P)
    length = edges.square().sum(-1, keepdim=True)
    is_point = length == 0
    direction = edges / torch.where(is_point, 1.0, length).sqrt()
    direction = torch.where(is_point, direction.new_tensor((1.0, 0.0)), direction)
    cos, sin = direction.unsqueeze(-2).unbind(-1)  # (B, E, 1)
    along, across = cos * x + sin * y, cos * y - sin * x  # (B, E, P)
    w_low, w_high = along.amin(-1), along.amax(-1)  # (B, E); aminmax has no derivative in torch 2.10
    h_low, h_high = across.amin(-1), across.amax(-1)
    w, h = w_high - w_low, h_high - h_low
    best = torch.where(is_point[..., 0], torch.inf, w * h).argmin(-1, keepdim=True)  # (B, 1)
    cos, sin = cos[..., 0], sin[..., 0]
    middle_w, middle_h = (w_high + w_low) / 2, (h_high + h_low) / 2
    cx, cy = cos * middle_w - sin * middle_h, sin * middle_w + cos * middle_h
    boxes = torch.stack((cx, cy, w, h, torch.atan2(sin, cos)), -1)  # (B, E, 5)
    chosen = boxes.gather(1, best.unsqueeze(-1).expand(-1, -1, 5)).squeeze(1)
    return torch.cat((chosen[:, :2] + origin[:, 0], chosen[:, 2:]), -1)


def convex_hull(points: Tensor) -> Tensor:
    """Corners of the convex hull of (P, 2) points, (K, 2), clockwise on the screen from the leftmost (then topmost);
    no three on one line. One point, or two, where the points are no more than that."""
    check_last("convex_hull", "points", points, 2)
    if points.dim() != 2:
        raise ValueError(f"convex_hull: points have shape {tuple(points.shape)}; use (P, 2)")
    return hull_of(points)


def hull_of(points: Tensor) -> Tensor:
    """Andrew's monotone chain (1979)."""
    xy = points.detach().double().cpu().tolist()
    order = sorted(range(len(xy)), key=xy.__getitem__)
    order = [i for n, i in enumerate(order) if n == 0 or xy[i] != xy[order[n - 1]]]
    if len(order) < 3:
        return points[order]

    def chain(indices) -> list[int]:
        kept: list[int] = []
        for i in indices:
            while len(kept) >= 2 and turn(xy[kept[-2]], xy[kept[-1]], xy[i]) <= 0:
                kept.pop()
            kept.append(i)
        return kept[:-1]

    return points[chain(order) + chain(reversed(order))]


def turn(a: list[float], b: list[float], c: list[float]) -> float:
    """Positive where a -> b -> c turns from x towards y: clockwise on the screen."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

"""Which points lie in which rotated boxes."""

from torch import Tensor

from vantage.ops.rotated_boxes.arguments import check_alike, check_boxes
from vantage.ops.rotated_boxes.dispatch import backend_function


def points_in_rotated_boxes(points: Tensor, boxes: Tensor, *, backend: str = "auto") -> Tensor:
    """(P, 2) points (x, y) and (N, 5) boxes -> (P, N) bool: |offset along w| <= w/2 and |offset along h| <= h/2, the
    border included. One dtype of float32 and float64; computed in float64. A point or box with NaN is in nothing."""
    check_boxes("points_in_rotated_boxes", "points", points, 2)
    check_boxes("points_in_rotated_boxes", "boxes", boxes)
    check_alike("points_in_rotated_boxes", "points", points, "boxes", boxes)
    return backend_function("points_in_rotated_boxes", backend, boxes)(points.detach(), boxes.detach())

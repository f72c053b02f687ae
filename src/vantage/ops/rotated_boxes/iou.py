"""Exact overlap of rotated boxes."""

from torch import Tensor

from vantage.ops.rotated_boxes.arguments import check_aligned, check_alike, check_boxes
from vantage.ops.rotated_boxes.dispatch import backend_function

MODES = ("iou", "iof")


def rotated_iou(a: Tensor, b: Tensor, *, aligned: bool = False, mode: str = "iou", backend: str = "auto") -> Tensor:
    """Area in common over the area of the union ("iou") or over that of `a` ("iof", intersection over foreground).

    a: (N, 5), b: (M, 5), (cx, cy, w, h, angle_rad), one dtype of float32 and float64, one device; boxes need not be
        canonical. Returns (N, M), or (N,) of pairs with aligned=True (then M = N), in their dtype.
    Computed in float64: right to float32's rounding for any boxes, also nearly identical, touching, nested ones and
    slivers, at any coordinates. A side <= 0 makes a box without area, whose ratios are 0; a box that is not finite has
    the ratio NaN.
    Differentiable in both boxes, once with the native backend; where boxes share an edge, the gradient is the mean of
    those on both sides (zero for identical boxes), and zero for boxes that are apart.
    Raises ValueError for shapes, dtypes and modes that do not fit, RuntimeError for a backend that cannot run here.
    """
    if mode not in MODES:
        raise ValueError(f"rotated_iou: mode={mode!r} is unknown; use {' or '.join(MODES)}")
    check_boxes("rotated_iou", "a", a)
    check_boxes("rotated_iou", "b", b)
    check_alike("rotated_iou", "a", a, "b", b)
    if aligned:
        check_aligned("rotated_iou", "a", a, "b", b)
    return backend_function("rotated_iou", backend, a)(a, b, aligned, mode == "iof")

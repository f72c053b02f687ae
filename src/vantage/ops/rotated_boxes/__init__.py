"""Rotated boxes: conversions, exact IoU, NMS, RoI align, losses.

One convention everywhere: a box is (cx, cy, w, h, angle_rad) in pixels, y down, the angle clockwise on the screen (it
turns the x axis towards y); canonical boxes have w >= h and an angle in [-pi/2, pi/2), known as le90. Boxes are float32
or float64; what decides on overlaps computes in float64 inside, also under autocast, and refuses half precision, which
rounds 1,000 px to 4 px (bfloat16) or to 0.5 px (float16).

`boxes.py` and `hull.py` are geometry in plain PyTorch. `iou.py`, `nms.py`, `roi_align.py` and `points.py` are ops with
three backends: `reference.py` in plain PyTorch for any device, `native.py` in C++ for the CPU and `cuda.py` for NVIDIA
GPUs. `losses.py` stands on them.
"""

from vantage.ops.rotated_boxes.boxes import (
    canonical,
    enclosing_xyxy,
    from_cxcywhr_degrees,
    to_corners,
    to_cxcywhr_degrees,
)
from vantage.ops.rotated_boxes.dispatch import BACKENDS
from vantage.ops.rotated_boxes.hull import convex_hull, from_corners
from vantage.ops.rotated_boxes.iou import rotated_iou
from vantage.ops.rotated_boxes.losses import gwd_loss, kfiou_loss, kld_loss, probiou_loss, rotated_iou_loss
from vantage.ops.rotated_boxes.nms import rotated_nms
from vantage.ops.rotated_boxes.points import points_in_rotated_boxes
from vantage.ops.rotated_boxes.roi_align import rotated_roi_align

__all__ = [
    "BACKENDS",
    "canonical",
    "convex_hull",
    "enclosing_xyxy",
    "from_corners",
    "from_cxcywhr_degrees",
    "gwd_loss",
    "kfiou_loss",
    "kld_loss",
    "points_in_rotated_boxes",
    "probiou_loss",
    "rotated_iou",
    "rotated_iou_loss",
    "rotated_nms",
    "rotated_roi_align",
    "to_corners",
    "to_cxcywhr_degrees",
]

"""C++ backend for CPUs (kernels/rotated_boxes): float32 and float64, computed in float64, parallel over rows.

Compiled on first use (vantage/ops/build.py). `registration.py` has the schemas.
"""

import functools

from torch import Tensor

from vantage.ops import build
from vantage.ops.rotated_boxes import registration


def unavailable(device: str) -> str | None:
    """Why a call with tensors there cannot run, and what to do about it; None where it can."""
    if device != "cpu":
        return f"it runs on the CPU and the boxes are on {device}; use backend='auto' or 'reference'"
    return library_error()


@functools.cache
def library_error() -> str | None:
    """Compiles and loads the library at the first call."""
    try:
        build.load_cpu("rotated_boxes")
    except build.BuildError as error:
        return str(error)
    return None


rotated_iou = registration.iou
rotated_nms = registration.nms
points_in_rotated_boxes = registration.points_in


def rotated_roi_align(
    features: Tensor, boxes: Tensor, height: int, width: int, spatial_scale: float, sampling_ratio: int
) -> Tensor:
    return registration.roi_align(features, boxes.double(), height, width, spatial_scale, sampling_ratio)

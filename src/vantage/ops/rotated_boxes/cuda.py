"""CUDA backend (kernels/rotated_boxes/cuda.cu): the geometry of the native one, a thread per result.

Compiled by nvcc on first use for the GPUs of the machine (vantage/ops/build_cuda.py). It attaches to the registered ops
of the native backend, for CUDA tensors. Deterministic but for the gradient of RoI align, which adds atomically. A
region of no image of the batch, or of millions of pixels under sampling_ratio=0, gives NaN where the CPU raises.
"""

import functools

import torch

from vantage.ops import build, build_cuda
from vantage.ops.rotated_boxes import native


def unavailable(device: str) -> str | None:
    """Why a call with tensors there cannot run, and what to do about it; None where it can."""
    if device != "cuda" or torch.version.cuda is None:
        return f"it runs on an NVIDIA GPU and the boxes are on {device}; use backend='auto'"
    return library_error()


@functools.cache
def library_error() -> str | None:
    """Compiles and loads the library at the first call."""
    architectures = build_cuda.visible_architectures()
    if not architectures:
        return "it needs a GPU of compute capability 8.0 or more; use backend='reference'"
    try:
        build_cuda.load_cuda("rotated_boxes", architectures)
    except build.BuildError as error:
        return str(error)
    return None


rotated_iou = native.rotated_iou
rotated_nms = native.rotated_nms
points_in_rotated_boxes = native.points_in_rotated_boxes
rotated_roi_align = native.rotated_roi_align

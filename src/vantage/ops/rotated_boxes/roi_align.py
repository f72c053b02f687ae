"""Features of rotated boxes on a regular grid."""

import torch
from torch import Tensor

from vantage.ops.rotated_boxes.arguments import check_boxes
from vantage.ops.rotated_boxes.dispatch import backend_function

NAME = "rotated_roi_align"


def rotated_roi_align(
    features: Tensor,
    boxes: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    *,
    backend: str = "auto",
) -> Tensor:
    """Mean of bilinear samples in every bin of a grid that is turned with its box.

    features: (B, C, H, W), any floating dtype; half precision is sampled in float32 and returned as it came.
    boxes: (K, 6) = (index in the batch, cx, cy, w, h, angle_rad) in pixels of the image, float32 or float64.
    output_size: (height, width) of the grid, or one number for both; height bins lie along the box's h.
    spatial_scale: of the map relative to the image, 1 / stride.
    sampling_ratio: samples per bin and axis; 0 takes one per pixel of the map, at least one.
    Returns (K, C, height, width). Pixel i of the map covers i to i + 1 (its value sits at i + 1/2: `aligned=True` of
    other implementations); a sample outside of the map takes the border's value up to a pixel away, zero beyond.
    Differentiable in the features, not in the boxes.
    """
    if features.dim() != 4 or not features.is_floating_point() or 0 in features.shape[2:]:
        raise ValueError(
            f"{NAME}: features are {features.dtype} of shape {tuple(features.shape)}; use floats (B, C, H, W)"
        )
    check_boxes(NAME, "boxes", boxes, 6)
    if boxes.device != features.device:
        raise ValueError(f"{NAME}: features are on {features.device} and boxes on {boxes.device}; move one")
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    if height < 1 or width < 1:
        raise ValueError(f"{NAME}: output_size={output_size!r} has no bins; use sizes of at least 1")
    if sampling_ratio < 0:
        raise ValueError(f"{NAME}: sampling_ratio={sampling_ratio} is negative; use 0 to choose it per box, or more")
    dtype = features.dtype
    sampled = features if dtype == torch.float64 else features.float()
    align = backend_function(NAME, backend, sampled)
    return align(sampled, boxes.detach(), height, width, float(spatial_scale), int(sampling_ratio)).to(dtype)

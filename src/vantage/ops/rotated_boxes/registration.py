"""The registered ops of the native and CUDA backends: schemas, fake kernels and autograd; their kernels attach in C++.

    a, b, boxes, points    float32 or float64, of any strides; (N, 5), points (P, 2), boxes of RoI align (K, 6) float64
    rotated_iou_native     (N, M), or (N,) if aligned
    rotated_nms_native     boxes in the order of their scores -> (N,) bool, which stay
    rotated_roi_align_native    features (B, C, H, W) float32 or float64 -> (K, C, height, width)
Outputs are contiguous.
"""

import torch
from torch import Tensor

LIBRARY = torch.library.Library("vantage", "FRAGMENT")
SCHEMAS = {
    "rotated_iou_native": "(Tensor a, Tensor b, bool aligned, bool is_iof) -> Tensor",
    "rotated_iou_native_backward": "(Tensor grad, Tensor a, Tensor b, bool aligned, bool is_iof) -> (Tensor, Tensor)",
    "rotated_nms_native": "(Tensor boxes, Tensor? labels, float iou_threshold) -> Tensor",
    "points_in_rotated_boxes_native": "(Tensor points, Tensor boxes) -> Tensor",
    "rotated_roi_align_native": (
        "(Tensor features, Tensor boxes, int height, int width, float spatial_scale, int sampling_ratio) -> Tensor"
    ),
    "rotated_roi_align_native_backward": (
        "(Tensor grad, Tensor boxes, int[] sizes, float spatial_scale, int sampling_ratio) -> Tensor"
    ),
}
for name, schema in SCHEMAS.items():
    LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)

iou = torch.ops.vantage.rotated_iou_native.default
iou_backward = torch.ops.vantage.rotated_iou_native_backward.default
nms = torch.ops.vantage.rotated_nms_native.default
points_in = torch.ops.vantage.points_in_rotated_boxes_native.default
roi_align = torch.ops.vantage.rotated_roi_align_native.default
roi_align_backward = torch.ops.vantage.rotated_roi_align_native_backward.default


def register_fake(op):
    return torch.library.register_fake(op.name(), lib=LIBRARY)


@register_fake(iou)
def _(a: Tensor, b: Tensor, aligned: bool, is_iof: bool) -> Tensor:
    return a.new_empty((a.shape[0],) if aligned else (a.shape[0], b.shape[0]))


@register_fake(iou_backward)
def _(grad: Tensor, a: Tensor, b: Tensor, aligned: bool, is_iof: bool) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape), b.new_empty(b.shape)


@register_fake(nms)
def _(boxes: Tensor, labels: Tensor | None, iou_threshold: float) -> Tensor:
    return boxes.new_empty((boxes.shape[0],), dtype=torch.bool)


@register_fake(points_in)
def _(points: Tensor, boxes: Tensor) -> Tensor:
    return boxes.new_empty((points.shape[0], boxes.shape[0]), dtype=torch.bool)


@register_fake(roi_align)
def _(features: Tensor, boxes: Tensor, height: int, width: int, spatial_scale: float, sampling_ratio: int) -> Tensor:
    return features.new_empty((boxes.shape[0], features.shape[1], height, width))


@register_fake(roi_align_backward)
def _(grad: Tensor, boxes: Tensor, sizes: list[int], spatial_scale: float, sampling_ratio: int) -> Tensor:
    return grad.new_empty(sizes)


def save_boxes(ctx, inputs, output) -> None:
    a, b, *ctx.options = inputs
    ctx.save_for_backward(a, b)


def differentiate_iou(ctx, grad: Tensor):
    return *iou_backward(grad, *ctx.saved_tensors, *ctx.options), None, None


def refuse_twice(ctx, *_):
    raise RuntimeError(
        "rotated_iou: backends native and cuda are differentiable once; use backend='reference' for second derivatives"
    )


def save_for_roi_align(ctx, inputs, output) -> None:
    features, boxes, _, _, *ctx.options = inputs
    ctx.sizes = features.shape
    ctx.save_for_backward(boxes)


def differentiate_roi_align(ctx, grad: Tensor):
    return roi_align_backward(grad, *ctx.saved_tensors, ctx.sizes, *ctx.options), *(None,) * 5


def save_for_roi_align_twice(ctx, inputs, output) -> None:
    grad, boxes, _, *ctx.options = inputs
    ctx.grid = grad.shape[2:]
    ctx.save_for_backward(boxes)


def differentiate_roi_align_twice(ctx, grad: Tensor):  # the backward is linear, and the forward its transpose
    return roi_align(grad, *ctx.saved_tensors, *ctx.grid, *ctx.options), None, None, None, None


for op, backward, save in (
    (iou, differentiate_iou, save_boxes),
    (iou_backward, refuse_twice, None),
    (roi_align, differentiate_roi_align, save_for_roi_align),
    (roi_align_backward, differentiate_roi_align_twice, save_for_roi_align_twice),
):
    torch.library.register_autograd(op.name(), backward, setup_context=save, lib=LIBRARY)

"""Non-maximum suppression of rotated boxes."""

import torch
from torch import Tensor

from vantage.ops.rotated_boxes.arguments import check_aligned, check_boxes
from vantage.ops.rotated_boxes.dispatch import backend_function

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def rotated_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, labels: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Indices of the boxes that stay, int64, by falling score (equal scores by index).

    boxes: (N, 5), float32 or float64; scores: (N,), any floating dtype; labels: (N,) integers, or None.
    In the order of the scores a box stays unless its IoU with one that stayed, of the same label, is above
    iou_threshold. Labels are compared, not turned into offsets, so that no coordinate loses precision.
    A box that is not finite stays and removes none. Nothing is differentiated.
    """
    check_boxes("rotated_nms", "boxes", boxes)
    count = boxes.shape[0]
    for name, tensor in (("scores", scores), ("labels", labels)):
        if tensor is None:
            continue
        if tensor.dim() != 1:
            raise ValueError(f"rotated_nms: {name} have shape {tuple(tensor.shape)}; use ({count},), one per box")
        check_aligned("rotated_nms", "boxes", boxes, name, tensor)
        if tensor.device != boxes.device:
            raise ValueError(f"rotated_nms: boxes are on {boxes.device} and {name} on {tensor.device}; move one")
    if labels is not None and labels.dtype not in INTEGERS:
        raise ValueError(f"rotated_nms: labels are {labels.dtype}; use integers")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"rotated_nms: iou_threshold={iou_threshold} is no IoU; use a value between 0 and 1")
    if not torch.compiler.is_compiling():  # a value decides
        missing = int(scores.isnan().sum())
        if missing:
            raise ValueError(f"rotated_nms: {missing} of {count} scores are NaN and have no order; find out where from")
    order = scores.detach().argsort(descending=True, stable=True)
    if labels is not None:
        labels = labels[order].to(torch.int64)
    keep = backend_function("rotated_nms", backend, boxes)(boxes.detach()[order], labels, float(iou_threshold))
    return order[keep]

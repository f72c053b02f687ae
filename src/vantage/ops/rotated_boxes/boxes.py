"""Conversions of rotated boxes, differentiable, for any leading shape: (..., 5) = (cx, cy, w, h, angle_rad)."""

import math

import torch
from torch import Tensor

from vantage.ops.rotated_boxes.arguments import check_floats

SIGNS_W = (-0.5, 0.5, 0.5, -0.5)  # corners: clockwise on the screen, from the one that is top left at angle 0
SIGNS_H = (-0.5, -0.5, 0.5, 0.5)


def canonical(boxes: Tensor) -> Tensor:
    """The same rectangles with w >= h and an angle in [-pi/2, pi/2); canonical boxes come back bit for bit.

    boxes: (..., 5). A square keeps its angle modulo pi, so that its w-edge stays the one it was.
    """
    check_last("canonical", "boxes", boxes, 5)
    cx, cy, w, h, angle = boxes.unbind(-1)
    is_tall = h > w
    w, h = torch.where(is_tall, h, w), torch.where(is_tall, w, h)
    return torch.stack((cx, cy, w, h, half_turn(torch.where(is_tall, angle + math.pi / 2, angle))), -1)


def half_turn(angle: Tensor) -> Tensor:
    """angle modulo pi in [-pi/2, pi/2); one that lies there is not touched."""
    angle = angle - math.pi * torch.floor((angle.detach() + math.pi / 2) / math.pi)
    # of the rounded ends only: once up, once down
    limit = torch.full((), math.pi / 2, dtype=angle.dtype, device=angle.device)
    angle = torch.where(angle >= limit, angle - math.pi, angle)
    angle = torch.where(angle < -limit, angle + math.pi, angle)
    return torch.where(angle >= limit, -limit, angle)


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 5) -> (..., 4, 2): the corners (-w/2, -h/2), (w/2, -h/2), (w/2, h/2), (-w/2, h/2) of the box's own frame,
    so that the first edge is a w-edge and they run clockwise on the screen."""
    check_last("to_corners", "boxes", boxes, 5)
    cx, cy, w, h, angle = boxes.unsqueeze(-1).unbind(-2)  # (..., 1) each
    along, across = w * boxes.new_tensor(SIGNS_W), h * boxes.new_tensor(SIGNS_H)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cx + along * cos - across * sin, cy + along * sin + across * cos), -1)


def enclosing_xyxy(boxes: Tensor) -> Tensor:
    """(..., 5) -> (..., 4): the smallest upright box (x1, y1, x2, y2) around each."""
    check_last("enclosing_xyxy", "boxes", boxes, 5)
    cx, cy, w, h, angle = boxes.unbind(-1)
    cos, sin = angle.cos().abs(), angle.sin().abs()
    half_x, half_y = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return torch.stack((cx - half_x, cy - half_y, cx + half_x, cy + half_y), -1)


def to_cxcywhr_degrees(boxes: Tensor) -> Tensor:
    """To torchvision's CXCYWHR: (cx, cy, w, h, angle in degrees counter-clockwise), (..., 5)."""
    check_last("to_cxcywhr_degrees", "boxes", boxes, 5)
    return torch.cat((boxes[..., :4], -torch.rad2deg(boxes[..., 4:])), -1)


def from_cxcywhr_degrees(boxes: Tensor) -> Tensor:
    """From torchvision's CXCYWHR, degrees counter-clockwise, to canonical boxes, (..., 5)."""
    if isinstance(boxes, Tensor) and type(boxes) is not Tensor:
        boxes = boxes.as_subclass(Tensor)  # a BoundingBoxes would keep calling itself CXCYWHR
    check_last("from_cxcywhr_degrees", "boxes", boxes, 5)
    return canonical(torch.cat((boxes[..., :4], -torch.deg2rad(boxes[..., 4:])), -1))


def check_last(function: str, name: str, tensor: Tensor, size: int) -> None:
    check_floats(function, name, tensor)
    if tensor.dim() < 1 or tensor.shape[-1] != size:
        layout = "cx, cy, w, h, angle_rad" if size == 5 else "x, y"
        raise ValueError(f"{function}: {name} has shape {tuple(tensor.shape)}; its last size must be {size} ({layout})")

"""What the functions of this package accept: every refusal is a sentence that names the value and what would fit."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


def check_boxes(function: str, name: str, boxes: Tensor, columns: int = 5) -> None:
    """(N, columns) in float32 or float64."""
    check_floats(function, name, boxes)
    if boxes.dim() != 2 or boxes.shape[1] != columns:
        layout = {2: "x, y", 5: "cx, cy, w, h, angle_rad", 6: "batch index, cx, cy, w, h, angle_rad"}[columns]
        hint = "; without boxes that is torch.empty(0, 5)" if boxes.numel() == 0 and columns == 5 else ""
        raise ValueError(
            f"{function}: {name} has shape {tuple(boxes.shape)}; use (N, {columns}) with columns {layout}{hint}"
        )


def check_floats(function: str, name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{function}: {name} is a {type(tensor).__name__}; use a torch.Tensor")
    if tensor.dtype not in DTYPES:
        reason = "which rounds pixels" if tensor.dtype.is_floating_point else "not a floating dtype"
        raise ValueError(
            f"{function}: {name} is {tensor.dtype}, {reason}; use float32 or float64 (decode boxes with .float(), "
            "also under autocast)"
        )
    if type(tensor) is not Tensor and hasattr(tensor, "format"):
        raise ValueError(
            f"{function}: {name} is a {type(tensor).__name__} of torchvision, whose angles are counter-clockwise "
            "degrees; convert it with from_cxcywhr_degrees"
        )


def check_alike(function: str, first: str, a: Tensor, second: str, b: Tensor) -> None:
    """One dtype and one device."""
    if a.dtype != b.dtype:
        raise ValueError(f"{function}: {first} is {a.dtype} and {second} is {b.dtype}; give them one dtype")
    if a.device != b.device:
        raise ValueError(f"{function}: {first} is on {a.device} and {second} on {b.device}; move them to one device")


def check_aligned(function: str, first: str, a: Tensor, second: str, b: Tensor) -> None:
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"{function}: {first} has {a.shape[0]} boxes and {second} {b.shape[0]}; aligned boxes come in pairs"
        )

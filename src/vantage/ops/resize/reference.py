"""The definition: one matrix per axis; any scale, any float, differentiable as often as wanted, slow."""

from torch import Tensor

from vantage.ops.resize.rounding import to_bytes
from vantage.ops.resize.weights import matrix


def resize_rows(x: Tensor, scale: float) -> Tensor:
    """(..., H, W) -> (..., ceil(scale H), W)"""
    return matrix(x.shape[-2], scale, x.device, x.dtype) @ x


def resize(x: Tensor, scale: float, rounds_between: bool) -> Tensor:
    """x (..., H, W), a float. rounds_between: to whole numbers of 0..255 after the rows."""
    x = resize_rows(x, scale)
    x = to_bytes(x) if rounds_between else x
    return resize_rows(x.mT, scale).mT

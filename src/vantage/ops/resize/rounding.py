"""Whole numbers of 0..255, as MATLAB makes them."""

from torch import Tensor


def to_bytes(x: Tensor) -> Tensor:
    """Halves away from zero, where torch.round takes them to the even neighbour; still a float."""
    return (x + 0.5).floor_().clamp_(0, 255)

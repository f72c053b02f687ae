"""Where tokens of a box lie and how far apart they are: what a mechanism hands to a position."""

import torch
from torch import Tensor

from vantage.ops.constants import cached_constant


@cached_constant
def pixel_coords(height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, 2) float (y, x), row-major."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack((y, x), -1).flatten(0, 1).float()


@cached_constant
def pairwise_offsets(height: int, width: int, device: torch.device) -> Tensor:
    """(N, N, 2) integer key - query in (y, x), N = height * width."""
    coords = pixel_coords(height, width, device).long()
    return coords[None] - coords[:, None]


@cached_constant
def box_offsets(height: int, width: int, device: torch.device) -> Tensor:
    """(2 height - 1, 2 width - 1, 2) every offset between two tokens of a box, as a bias table lists them."""
    offsets = pixel_coords(2 * height - 1, 2 * width - 1, device).long()
    return offsets.unflatten(0, (2 * height - 1, 2 * width - 1)) - offsets.new_tensor((height - 1, width - 1))

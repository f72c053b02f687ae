"""The cubic kernel, and what it gives along one axis: a matrix for any scale, a few taps for a whole one."""

import math

import torch
from torch import Tensor

REACH = 2  # of the kernel, in pixels of the coarser picture


def cubic(t: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2."""
    t = t.abs()
    near = (1.5 * t - 2.5) * t**2 + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t <= 1, near, torch.where(t <= 2, far, 0.0))


def out_length(length: int, scale: float) -> int:
    """ceil(scale * length), where a scale like 1/3, which no float is, must not give a pixel too many."""
    return math.ceil(scale * length - 1e-9 * length)


def matrix(length: int, scale: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(out_length, length): row i holds the weights of the pixels that output i is a mean of."""
    squeeze = min(1.0, scale)
    support = REACH / squeeze
    centre = (torch.arange(out_length(length, scale), dtype=torch.float64) + 0.5) / scale - 0.5
    first = (centre - support).floor().long()
    index = first[:, None] + torch.arange(math.ceil(2 * support) + 2)
    weights = cubic(squeeze * (index - centre[:, None]))
    weights = weights / weights.sum(1, keepdim=True)
    rows = torch.zeros(len(centre), length, dtype=torch.float64).scatter_add_(1, mirrored(index, length), weights)
    return rows.to(device, dtype)


def mirrored(index: Tensor, length: int) -> Tensor:
    """Pixels beyond a border, however far: ... 1 0 | 0 1 2 ... n-1 | n-1 n-2 ..."""
    index = index % (2 * length)
    return torch.where(index < length, index, 2 * length - 1 - index)


def taps(factor: int) -> tuple[int, Tensor]:
    """Reducing by a whole factor: out[i] = sum_k w[k] x[factor i + first + k] -> first, w (float64)."""
    centre = (factor - 1) / 2
    first = math.floor(centre - REACH * factor) + 1  # the kernel is 0 at its ends
    last = math.ceil(centre + REACH * factor) - 1
    weights = cubic((torch.arange(first, last + 1, dtype=torch.float64) - centre) / factor)
    return first, weights / weights.sum()

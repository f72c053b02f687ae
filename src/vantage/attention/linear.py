"""What several linear attentions share: the heads of a map, weighted means by features of queries and keys, and the
depthwise convolution of the values (LePE)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, H, W, C) -> (B, heads, H * W, C / heads), row-major tokens; a view where x is contiguous."""
    return x.flatten(1, 2).unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor, height: int, width: int) -> Tensor:
    """(B, heads, H * W, d) -> (B, H, W, heads * d)."""
    return x.transpose(1, 2).flatten(2).unflatten(1, (height, width))


def weighted_means(
    q: Tensor, k: Tensor, v: Tensor, epsilon: float | Tensor, turned: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """sum_j (q_i . k_j) v_j / (q_i . sum_j k_j + epsilon), (B, heads, N, head_dim) of v's dtype.

    q, k (B, heads, N, features) in float32 or float64; `turned` stands for them in the numerator.
    """
    with torch.autocast(q.device.type, enabled=False):
        normaliser = q @ k.sum(dim=-2, keepdim=True).mT + epsilon
    q, k = (t.to(v.dtype) for t in turned or (q, k))
    return (q @ (k.mT @ v) / normaliser).to(v.dtype)


def shares(q: Tensor, k: Tensor) -> Tensor:
    """(q_i . k_j) / sum_j (q_i . k_j), (B, heads, N, N), of non-negative features (B, heads, N, features)."""
    # weights do not change with the length of a query nor with that of all keys, but products may underflow
    tiny = torch.finfo(q.dtype).tiny
    q = q / q.amax(dim=-1, keepdim=True).clamp(min=tiny)
    k = k / k.amax(dim=(-2, -1), keepdim=True).clamp(min=tiny)
    weights = q @ k.mT
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=tiny)


class Lepe(nn.Conv2d):
    """Locally enhanced positional encoding (CSWin, arXiv:2107.00652): a depthwise convolution over (B, H, W, C)."""

    def __init__(self, dim: int, kernel_size: int, bias: bool = True):
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out = F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, padding=self.padding, groups=self.groups)
        return out.permute(0, 2, 3, 1)

    def flops(self, height: int, width: int) -> int:
        return 2 * height * width * self.weight.numel()

"""Focused linear attention: a kernel that sharpens the direction of q and k, and a depthwise convolution of v.

Paper: FLatten Transformer: Vision Transformer using Focused Linear Attention (Han et al., 2023), arXiv:2308.00442
    f(x) = ||x|| x^p / ||x^p||, x^p entry by entry, p = 3        keeps the norm, moves towards the largest entries
    q = f((relu(q) + 1e-6) / softplus(s)), k likewise of k + E   over all dim channels, before they are split in heads
    out_i = q_i (sum_j k_j^T v_j / N) / (q_i . mean_j k_j + 1e-6) + DWConv5x5(v), then a linear projection
    E (N, dim) a learned table and s (dim) a learned scale, both zero at first; the convolution is shared by the heads
Cost: 4 N dim head_dim + 2 kernel_size^2 N dim beside the projections' 8 N dim^2; memory O(N dim). Linear in N.
Weights are named and shaped as in the release (LeapLabTHU/FLatten-Transformer): qkv, proj, dwc, scale,
positional_encoding.

The 1e-6 beside the normaliser is the release's and absolute: a token whose query has no positive entry in a head
gets weights that sum to less than one there. `attention_map` gives the weights without it.

Departs from the paper as its release does: it adds E to k and divides by softplus(s), and 1e-6 keeps f away from zero.
Departs from the release:
- Its table E has one entry per token of one resolution. Here it has `table_size` and is resized bilinearly to the map.
- x^p is taken of x / max(x), where it can neither over- nor underflow; f is the same, as the factor cancels.
- It accepts attn_drop and ignores it; here it is refused, there is no matrix to drop from.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.attention.base import Attention, check_odd, pair
from vantage.position.base import Position

EPSILON = 1e-6


class FocusedLinear(Attention):
    cost = "8*N*dim^2 + 4*N*dim^2/num_heads + 2*N*dim*kernel_size^2"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        focusing_factor: float = 3,
        kernel_size: int = 5,
        table_size: int | Sequence[int] = 14,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        if not focusing_factor > 0:
            raise ValueError(f"focused_linear: focusing_factor {focusing_factor} is not positive; the paper uses 3")
        check_odd(kernel_size, "attention.kernel_size", usual=5)
        self.refuse_attn_drop(attn_drop)
        self.focusing_factor = focusing_factor
        self.table_size = grid = pair(table_size, "attention.table_size")
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.dwc = nn.Conv2d(self.head_dim, self.head_dim, kernel_size, padding=kernel_size // 2, groups=self.head_dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        self.positional_encoding = nn.Parameter(torch.zeros(1, grid[0] * grid[1], dim))

    def extra_repr(self) -> str:
        return f"focusing_factor={self.focusing_factor}, table_size={self.table_size}"

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out = self.mix(*self.focused(q, k, 1 / (height * width)), v.view(batch, -1, self.num_heads, self.head_dim))
        return self.proj_drop(self.proj(out.reshape(x.shape) + self.local(v)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (B, N, heads, head_dim), k times 1/N -> (B, N, heads, head_dim) of v's dtype."""
        # an elementwise sum, not a matmul, so that autocast leaves it in float32; k's sum over tokens is its mean
        normaliser = (q * k.sum(dim=1, keepdim=True)).sum(dim=-1, keepdim=True) + EPSILON  # (B, N, heads, 1)
        q, k = (t.to(v.dtype).transpose(1, 2) for t in (q, k))  # (B, heads, N, head_dim)
        out = q @ (k.transpose(-2, -1) @ v.transpose(1, 2))
        return (out.transpose(1, 2) / normaliser).to(v.dtype)

    def focused(self, q: Tensor, k: Tensor, k_weight: float) -> tuple[Tensor, Tensor]:
        """f of q and of k, k times k_weight: maps -> (B, N, heads, head_dim) in float32 or float64."""
        batch, height, width, _ = q.shape
        full = torch.promote_types(q.dtype, torch.float32)
        q, k = (t.to(full).view(batch, height * width, self.dim) for t in (q, k))
        k = k + self.position_table(height, width)
        inverse_scale = 1 / F.softplus(self.scale.to(full))
        # (relu(x) + 1e-6) / softplus(s)
        q, k = (torch.addcmul(EPSILON * inverse_scale, t.relu(), inverse_scale) for t in (q, k))
        q, k = focus(q, self.focusing_factor), focus(k, self.focusing_factor, k_weight)
        return tuple(t.view(batch, height * width, self.num_heads, self.head_dim) for t in (q, k))

    def position_table(self, height: int, width: int) -> Tensor:
        """E, resized to the map: (1, N, dim)."""
        if (height, width) == self.table_size:
            return self.positional_encoding
        table = self.positional_encoding.view(1, *self.table_size, self.dim).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(height, width), mode="bilinear")
        return table.permute(0, 2, 3, 1).reshape(1, height * width, self.dim)

    def local(self, v: Tensor) -> Tensor:
        """The depthwise convolution that all heads share, over the map of v (B, H, W, dim)."""
        weight, bias = self.dwc.weight.repeat(self.num_heads, 1, 1, 1), self.dwc.bias.repeat(self.num_heads)
        out = F.conv2d(v.permute(0, 3, 1, 2), weight, bias, padding=self.dwc.padding, groups=self.dim)
        return out.permute(0, 2, 3, 1)

    def attention_map(self, x: Tensor) -> Tensor:
        """q_i . k_j / sum_j q_i . k_j, the weights of v before the depthwise convolution is added."""
        q, k = (t.transpose(1, 2) for t in self.focused(*self.qkv(x).chunk(3, dim=-1)[:2], 1.0))
        # weights do not change with the length of a query nor with that of all keys, but products may underflow
        tiny = torch.finfo(q.dtype).tiny
        q = q / q.amax(dim=-1, keepdim=True).clamp(min=tiny)
        k = k / k.amax(dim=(-2, -1), keepdim=True).clamp(min=tiny)
        weights = q @ k.transpose(-2, -1)
        return weights / weights.sum(dim=-1, keepdim=True).clamp(min=tiny)

    def flops(self, height: int, width: int) -> int:
        tokens, dim, area = height * width, self.dim, self.dwc.kernel_size[0] ** 2
        return 8 * tokens * dim**2 + 4 * tokens * dim * self.head_dim + 2 * tokens * dim * area


def focus(x: Tensor, power: float, weight: float = 1.0) -> Tensor:
    """weight * ||x|| x^power / ||x^power|| over the last axis, for x > 0."""
    # a constant in the gradient too: f does not depend on it
    largest = x.detach().amax(dim=-1, keepdim=True)
    x = x / largest
    powered = x.pow(power)
    norm, powered_norm = (torch.linalg.vector_norm(t, dim=-1, keepdim=True) for t in (x, powered))
    return powered * (norm / powered_norm * largest * weight)

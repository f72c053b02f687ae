"""Local region self-attention: overlapping windows that attend to themselves, averaged where they overlap.

Paper: CATANet: Efficient Content-Aware Token Aggregation for Lightweight Image Super-Resolution (Liu et al., 2025),
arXiv:2503.06896
    windows of w pixels start at 0, w - o, 2 (w - o), ..., and the last one ends with the map; o = overlap
    out_i = mean over the windows that hold i of (softmax(Q_w K_w^T / sqrt(d)) V_w)_i, then proj        (N, dim)
Cost: O(N dim^2 + r N w^2 dim) time, r = (w / (w - o))^2 the windows a pixel is in; O(r N w^2) memory per head at most.
No positional parameter. Weights have the names of the release (EquationWalker/CATANet): to_q, to_k, to_v, proj.

Departs from the release, with its values wherever it covers every pixel and counts right:
- A side shorter than the window: there a negative index leaves pixels out. Here the window takes the map's side, which
  is the whole window with its padding masked.
- A last window that starts one pixel after the one before it leaves a pixel in three windows, of whose sum the release
  takes a quarter. Here a sum is divided by the number of windows.
- Projections are linear and without padding, so they are applied once to the map and not in every window.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vantage.attention.base import Attention, note, pair
from vantage.attention.multihead import scores
from vantage.ops.constants import cached_constant
from vantage.ops.grouped_attention import grouped_attention
from vantage.position.base import Position


class Lrsa(Attention):
    cost = "8*N*dim^2 + 4*N*window_size^4*dim/(window_size - overlap)^2"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int | Sequence[int] = 16,
        overlap: int = 2,
        qk_dim: int | None = None,
        clamp: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        """overlap: pixels that neighbouring windows share, one less than their size at most. qk_dim: channels of
        queries and keys over all heads; None is dim (CATANet has 36 of 40). clamp: a window larger than the map takes
        the map's size; False raises instead."""
        super().__init__(dim, num_heads, position=position)
        self.window_size = pair(window_size, "attention.window_size")
        if overlap < 0:
            raise ValueError(f"lrsa: attention.overlap={overlap} leaves pixels between windows; use 0 or more")
        self.qk_dim = dim if qk_dim is None else qk_dim
        if self.qk_dim < 1 or self.qk_dim % num_heads:
            raise ValueError(f"lrsa: attention.qk_dim={qk_dim} is not a multiple of num_heads {num_heads}")
        self.overlap = overlap
        self.clamp = clamp
        self.attn_drop = attn_drop
        self.to_q = nn.Linear(dim, self.qk_dim, bias=qkv_bias)
        self.to_k = nn.Linear(dim, self.qk_dim, bias=qkv_bias)
        self.to_v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"window_size={self.window_size}, overlap={self.overlap}, qk_dim={self.qk_dim}"

    def layout(self, height: int, width: int) -> list[tuple[int, int]]:
        """(size, step) of the windows along y and x of a map of this size."""
        lengths = (height, width)
        sizes = tuple(min(window, length) for window, length in zip(self.window_size, lengths))
        if sizes != self.window_size:
            if not self.clamp:
                raise ValueError(
                    f"lrsa: window_size {self.window_size} does not fit the {height}x{width} map and attention.clamp "
                    f"is false; use attention.window_size={min(lengths)} or attention.clamp=true"
                )
            note(f"lrsa: window_size {self.window_size} is clamped to {sizes} on the {height}x{width} map")
        return [(size, max(size - self.overlap, 1)) for size in sizes]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        rows, columns, shared = self.windows(height, width, x.device)
        q, k, v = (self.split(project(x), rows, columns) for project in (self.to_q, self.to_k, self.to_v))
        out = grouped_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        out = merge(out, rows, columns, height, width) / shared.to(out.dtype)
        return self.proj_drop(self.proj(out))

    def windows(self, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (windows, size) and columns of the windows, and the number of windows (H, W, 1) that hold a pixel."""
        axes = zip((height, width), self.layout(height, width))
        (rows, by_rows), (columns, by_columns) = (axis_windows(length, *axis, device) for length, axis in axes)
        return rows, columns, (by_rows[:, None] * by_columns)[..., None]

    def split(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, heads, windows, slots, head_dim)."""
        x = x.index_select(1, rows.flatten()).index_select(2, columns.flatten())
        x = x.unflatten(2, columns.shape).unflatten(1, rows.shape)  # (B, down, wh, across, ww, C)
        return x.unflatten(-1, (self.num_heads, -1)).permute(0, 5, 1, 3, 2, 4, 6).flatten(4, 5).flatten(2, 3)

    def attention_map(self, x: Tensor) -> Tensor:
        """(B, heads, N, N): the average over the windows that hold the query."""
        height, width = x.shape[1:3]
        rows, columns, shared = self.windows(height, width, x.device)
        q, k = (self.split(project(x), rows, columns) for project in (self.to_q, self.to_k))
        weights = scores(q, k).softmax(-1)  # (B, heads, windows, slots, slots)
        tokens = rows[:, None, :, None] * width + columns[:, None]  # (down, across, wh, ww)
        tokens = tokens.flatten(2, 3).flatten(0, 1)
        count = height * width
        pairs = tokens[:, :, None] * count + tokens[:, None]
        dense = weights.new_zeros(*weights.shape[:2], count**2).index_add(2, pairs.flatten(), weights.flatten(2))
        return dense.unflatten(2, (count, count)) / shared.view(count, 1)

    def flops(self, height: int, width: int) -> int:
        both, axes = self.qk_dim + self.dim, self.layout(height, width)
        windows = math.prod(len(starts(length, *axis)) for length, axis in zip((height, width), axes))
        slots = math.prod(size for size, _ in axes)
        return 4 * height * width * self.dim * both + 2 * windows * slots**2 * both


def starts(length: int, size: int, step: int) -> list[int]:
    """Where the windows of an axis start; the last one ends at its end."""
    return [*range(0, length - size, step), length - size]


@cached_constant
def axis_windows(length: int, size: int, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels of the windows of an axis (windows, size), and the number of windows that hold a pixel (length)."""
    index = torch.tensor(starts(length, size, step), device=device)[:, None] + torch.arange(size, device=device)
    flat = index.flatten()
    return index, torch.zeros(length, dtype=torch.long, device=device).index_add(0, flat, torch.ones_like(flat))


def merge(x: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """(B, heads, windows, slots, d) -> (B, H, W, heads * d): the sum of what the windows have for a pixel."""
    x = x.unflatten(3, (rows.shape[1], columns.shape[1])).unflatten(2, (len(rows), len(columns)))
    x = x.permute(0, 2, 4, 3, 5, 1, 6).flatten(5).flatten(3, 4).flatten(1, 2)  # (B, down wh, across ww, C)
    x = x.new_zeros(len(x), height, x.shape[2], x.shape[3]).index_add(1, rows.flatten(), x)
    return x.new_zeros(len(x), height, width, x.shape[3]).index_add(2, columns.flatten(), x)

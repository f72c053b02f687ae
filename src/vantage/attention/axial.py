"""Axial attention: tokens attend along their row, along their column, or the sum of both.

Paper: Axial Attention in Multidimensional Transformers (Ho et al., 2019), arXiv:1912.12180
    row:    out_y = softmax(Q_y K_y^T / sqrt(d)) V_y         for each row y of W tokens; column: likewise, H tokens
    both:   out = row(x) + column(x), each with projections of its own
Cost: O(HW (H + W) dim) time; the fused kernels keep no weights unless a bias is given.
The paper alternates row and column blocks, two of which see the whole map; `axis: both` does in one layer, so that
any backbone slot can take it. With `is_causal` a token sees itself and what precedes it on the axis, so that every
token that is seen comes no later in raster order.
"""

import torch
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.attention.multihead import scores
from vantage.ops.grouped_attention import grouped_attention
from vantage.position.base import Position
from vantage.position.grid import pairwise_offsets, pixel_coords

AXES = {"row": ("row",), "column": ("column",), "both": ("row", "column")}


class Axial(Attention):
    supports_position = ("rotate", "bias")
    cost = "8*N*dim^2 + 4*N*(H+W)*dim; 16*N*dim^2 with both axes"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        axis: str = "both",
        is_causal: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        if axis not in AXES:
            raise ValueError(f"attention.axis={axis!r}; use one of {', '.join(AXES)}")
        self.axis = axis
        self.axes = AXES[axis]
        self.is_causal = is_causal
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim * len(self.axes), bias=qkv_bias)  # row's q, k, v, then column's
        self.proj = nn.Linear(dim * len(self.axes), dim)  # of the concatenation: a sum of two projections
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for axis, (q, k, v) in zip(self.axes, self.split(x)):
            mask = self.mask(axis, q, x.shape[1:3])
            out = grouped_attention(q, k, v, mask, dropout_p=self.attn_drop if self.training else 0.0)
            out = out.permute(0, 2, 3, 1, 4) if axis == "row" else out.permute(0, 3, 2, 1, 4)
            outs.append(out.flatten(3))  # (B, H, W, C)
        return self.proj_drop(self.proj(torch.cat(outs, -1)))

    def split(self, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """q, k, v of each axis, (B, heads, lines, tokens of a line, head_dim), rotated by the position."""
        height, width = x.shape[1:3]
        qkv = self.qkv(x).unflatten(-1, (len(self.axes), 3, self.num_heads, self.head_dim))
        split = []
        for number, axis in enumerate(self.axes):
            q, k, v = qkv[:, :, :, number].permute(3, 0, 4, 1, 2, 5).unbind(0)  # (B, heads, H, W, head_dim)
            if self.position is not None and self.position.hook == "rotate":
                coords = pixel_coords(height, width, x.device)
                q, k = (
                    t.unflatten(2, (height, width))
                    for t in self.position.rotate(q.flatten(2, 3), k.flatten(2, 3), coords)
                )
            split.append((q, k, v) if axis == "row" else tuple(t.transpose(2, 3) for t in (q, k, v)))
        return split

    def mask(self, axis: str, q: Tensor, lengths: tuple[int, int]) -> Tensor | None:
        """Additive (heads or 1, 1, L, L) of q's dtype, or None."""
        length = q.shape[3]
        mask = None
        if self.position is not None and self.position.hook == "bias":
            box = (1, length) if axis == "row" else (length, 1)
            offsets = pairwise_offsets(*box, q.device)
            mask = self.position.bias(offsets, tuple(lengths)).to(q.dtype)[:, None]
        if self.is_causal:
            ahead = q.new_full((length, length), float("-inf")).triu(1)
            mask = ahead[None, None] if mask is None else mask + ahead
        return mask

    def attention_map(self, x: Tensor) -> Tensor:
        """(B, heads, N, N) of a single axis, zero between different lines."""
        if self.axis == "both":
            raise ValueError("axial: the sum of two attentions has no one (N, N) map; use attention.axis=row or column")
        batch, height, width, _ = x.shape
        ((q, k, _),) = self.split(x)
        logits = scores(q, k)
        mask = self.mask(self.axis, q, (height, width))
        weights = (logits if mask is None else logits + mask).softmax(-1)  # (B, heads, lines, L, L)
        dense = weights.new_zeros(batch, self.num_heads, height, width, height, width)
        lines = torch.arange(weights.shape[2], device=x.device)
        if self.axis == "row":
            dense[:, :, lines, :, lines] = weights.movedim(2, 0)
        else:
            dense[:, :, :, lines, :, lines] = weights.movedim(2, 0)
        return dense.flatten(4).flatten(2, 3)

    def flops(self, height: int, width: int) -> int:
        tokens = height * width
        total = 0
        for axis in self.axes:
            length = width if axis == "row" else height
            seen = length * (length + 1) // 2 if self.is_causal else length**2
            total += 8 * tokens * self.dim**2 + 4 * self.dim * (tokens // length) * seen
        return total

    def extra_repr(self) -> str:
        return f"axis={self.axis}, is_causal={self.is_causal}"

"""Rectangle-window attention: half of the heads see lying rectangles, half standing ones; a convolution adds locality.

Paper: Cross Aggregation Transformer for Image Restoration (Chen et al., 2022), arXiv:2211.13654
    out_w = softmax(Q_w K_w^T / sqrt(d) + B) V_w      for each rectangle w of (short_side, long_side) pixels (y, x) in
                                                      half of the heads, (long_side, short_side) in the others
    B[i, j] = MLP(y_i - y_j, x_i - x_j)               a number per head
    out = W_o (concat(out of the two directions) + DWConv3x3(V))
`long_side` null makes the rectangles axial: (H, short_side) and (short_side, W), from border to border of the map.
`shift: half` (axial shift) displaces each direction's rectangles by half of their own sides, but not along an axis that
they span. A cyclic roll packs the partial rectangles at both ends into one, where a mask keeps them apart.
Cost: 8 N dim^2 + 4 N short_side long_side dim + 18 N dim multiply-adds twice, memory O(N dim) beside the bias; with a
shift or padding bias and mask are joined, O(heads N short_side long_side). long_side is H or W where it is null.

Weights are named and shaped as in the release (zhengchen1999/CAT), which has them in its blocks: qkv, proj, get_v (the
convolution), attns.{0,1}.pos (the MLP). As there, direction 0 is (short, long) of regular rectangles but (H, short) of
axial ones, and an axis that a single regular rectangle covers is cut in two halves when shifted. The last bias of the
MLP moves all logits of a head alike, which the softmax does not see: its gradient is rounding noise.

Departs from the release:
- Any map will do: what pads it to whole rectangles is masked, and a side longer than the map takes the map's length.
  There sides must divide the map.
- Minus infinity instead of -100 keeps tokens apart.
- An odd number of heads gives direction 0 one more. Release and paper know even numbers only.
- The MLP has dim // 32 channels as there (5 of CAT's 180), but at least 4: normalised, one channel is constant and two
  are a sign.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from vantage.attention.base import Attention, note
from vantage.attention.multihead import scores
from vantage.attention.window import window_groups
from vantage.ops.constants import cached_constant
from vantage.ops.grouped_attention import grouped_attention
from vantage.position.base import Position
from vantage.position.grid import box_offsets, pixel_coords


class Rwin(Attention):
    cost = "8*N*dim^2 + 4*N*short_side*long_side*dim + 18*N*dim"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        short_side: int = 4,
        long_side: int | None = 16,
        shift: int | Literal["half"] = 0,
        clamp: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        """long_side: None spans the map. shift: 0 or "half" of each side. clamp: a side longer than the map takes the
        map's length; False raises instead."""
        super().__init__(dim, num_heads, position=position)  # refuses a position: it has a bias of its own
        check_side("short_side", short_side, "an integer of at least 1")
        if long_side is not None:
            check_side("long_side", long_side, "an integer of at least 1, or null for the side of the map")
        if shift not in (0, "half"):
            raise ValueError(f"attention.shift={shift!r}; use 0 or half: both sides shift by half of their length")
        self.short_side = short_side
        self.long_side = long_side
        self.shift = shift
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        sides = [(short_side, long_side), (long_side, short_side)]
        if long_side is None:
            sides.reverse()
        shares = [num_heads - num_heads // 2, num_heads // 2]
        hidden = max(dim // 32, 4)
        self.attns = nn.ModuleList(
            Rectangles(heads, side, hidden, is_shifted=shift == "half", clamp=clamp)
            for heads, side in zip(shares, sides)
            if heads  # a single head has a single direction
        )
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"short_side={self.short_side}, long_side={self.long_side}, shift={self.shift}"

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        drop = self.attn_drop if self.training else 0.0
        mixed = torch.cat([direction(part, drop) for direction, part in self.directions(qkv)], -1)
        v = qkv[..., 2 * self.dim :].permute(0, 3, 1, 2)
        return self.proj_drop(self.proj(mixed + self.get_v(v).permute(0, 2, 3, 1)))

    def directions(self, qkv: Tensor) -> Iterator[tuple["Rectangles", Tensor]]:
        """Each direction with its heads of qkv (B, H, W, 3 C): (B, H, W, 3, heads, head_dim)."""
        qkv = qkv.unflatten(-1, (3, self.num_heads, self.head_dim))
        return zip(self.attns, qkv.split([direction.num_heads for direction in self.attns], dim=-2))

    def attention_map(self, x: Tensor) -> Tensor:
        """(B, heads, N, N), zero between different rectangles; the depthwise convolution of v is beside it."""
        return torch.cat([direction.attention_map(part) for direction, part in self.directions(self.qkv(x))], 1)

    def flops(self, height: int, width: int) -> int:
        """With the pairs that a mask keeps apart and those of padded slots, which are computed."""
        tokens = height * width
        inside = sum(direction.flops(height, width, self.head_dim) for direction in self.attns)
        return 8 * tokens * self.dim**2 + 18 * tokens * self.dim + inside


def check_side(name: str, side: int, wanted: str) -> None:
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise ValueError(f"attention.{name}={side!r}; use {wanted}")


class Rectangles(nn.Module):
    """Softmax attention of some heads inside rectangles of one shape, given q, k and v."""

    def __init__(
        self, num_heads: int, sides: tuple[int | None, int | None], hidden: int, *, is_shifted: bool, clamp: bool
    ):
        """sides: (y, x), None spans the map. hidden: channels of the MLP behind the bias."""
        super().__init__()
        self.num_heads = num_heads
        self.sides = sides
        self.is_shifted = is_shifted
        self.clamp = clamp
        self.pos = OffsetMLP(hidden, num_heads)

    def layout(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size and shift of the rectangles on a map of this size."""
        lengths = (height, width)
        size = tuple(length if side is None else min(side, length) for side, length in zip(self.sides, lengths))
        if any(side is not None and side > length for side, length in zip(self.sides, lengths)):
            wanted = tuple(side or length for side, length in zip(self.sides, lengths))
            if not self.clamp:
                raise ValueError(
                    f"rwin: rectangles of {wanted} (y, x) do not fit the {height}x{width} map and attention.clamp is "
                    f"false; use sides of at most {min(lengths)} as attention.short_side and long_side, or "
                    "attention.clamp=true"
                )
            note(f"rwin: rectangles of {wanted} (y, x) are clamped to {size} on the {height}x{width} map")
        shift = tuple(own // 2 if self.is_shifted and side is not None else 0 for own, side in zip(size, self.sides))
        return size, shift

    def forward(self, qkv: Tensor, dropout_p: float) -> Tensor:
        """(B, H, W, 3, heads, head_dim) -> (B, H, W, heads * head_dim)."""
        q, k, v, mask, _, slot = self.partition(qkv)
        out = grouped_attention(q, k, v, mask, dropout_p=dropout_p)
        out = out.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2).index_select(1, slot)  # (B, N, heads * head_dim)
        return out.unflatten(1, qkv.shape[1:3])

    def partition(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, k, v (B, heads, rectangles, slots, head_dim), their additive mask, token of each slot, slot of each token.

        The mask is (heads, rectangles or 1, slots, slots) and holds the bias.
        """
        height, width = qkv.shape[1:3]
        size, shift = self.layout(height, width)
        index, slot, mask = window_groups(height, width, size, shift, qkv.device, qkv.dtype)
        parts = qkv.flatten(1, 2).index_select(1, index).unflatten(1, (-1, size[0] * size[1]))
        q, k, v = parts.permute(3, 0, 4, 1, 2, 5).unbind(0)
        bias = self.bias(size, qkv.device).to(qkv.dtype)
        return q, k, v, bias if mask is None else bias + mask, index, slot

    def bias(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """(heads, 1, slots, slots)."""
        table = self.pos(box_offsets(*size, device).flatten(0, 1))  # (offsets, heads)
        index = offset_index(*size, device)
        return table.mT.index_select(1, index.flatten()).unflatten(1, index.shape)[:, None]

    def attention_map(self, qkv: Tensor) -> Tensor:
        """(B, H, W, 3, heads, head_dim) -> (B, heads, N, N), without dropout."""
        q, k, _, mask, index, slot = self.partition(qkv)
        weights = (scores(q, k) + mask).softmax(-1)  # (B, heads, rectangles, slots, slots)
        slots = weights.shape[-1]
        keys = index.view(-1, slots)[slot // slots]  # (N, slots): the tokens that each token sees
        weights = weights.flatten(2, 3).index_select(2, slot)
        dense = weights.new_zeros(*weights.shape[:3], len(slot))
        return dense.scatter_add(3, keys.expand_as(weights), weights)

    def flops(self, height: int, width: int, head_dim: int) -> int:
        (rows, columns), _ = self.layout(height, width)
        count = -(-height // rows) * -(-width // columns)
        offsets = (2 * rows - 1) * (2 * columns - 1)
        return 4 * self.num_heads * head_dim * count * (rows * columns) ** 2 + offsets * self.pos.flops_per_offset

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, sides={self.sides}"


class OffsetMLP(nn.Module):
    """Offsets query - key in (y, x), integers (n, 2) -> a bias per head (n, heads)."""

    def __init__(self, hidden: int, num_heads: int):
        super().__init__()
        self.pos_proj = nn.Linear(2, hidden)
        self.pos1, self.pos2, self.pos3 = (
            nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, out))
            for out in (hidden, hidden, num_heads)
        )
        self.flops_per_offset = 2 * (2 * hidden + 2 * hidden**2 + hidden * num_heads)

    def forward(self, offsets: Tensor) -> Tensor:
        return self.pos3(self.pos2(self.pos1(self.pos_proj(offsets.to(self.pos_proj.weight.dtype)))))


@cached_constant
def offset_index(height: int, width: int, device: torch.device) -> Tensor:
    """(slots, slots) row of query - key in the offsets of a box, row-major."""
    y, x = pixel_coords(height, width, device).long().unbind(1)
    place = y * (2 * width - 1) + x
    return place[:, None] - place + place[-1]

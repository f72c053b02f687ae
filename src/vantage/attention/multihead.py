"""What the softmax family shares: one qkv projection, attention inside groups of tokens, one output projection.

A grouped mechanism is a rule that sorts the tokens of a map into groups of equal size (all of them, windows, a dilated
grid); a group attends to itself. Slots that no token fills are masked as keys and never read as queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.ops.grouped_attention import grouped_attention
from vantage.position.base import Position
from vantage.position.grid import pairwise_offsets, pixel_coords


@dataclass(frozen=True)
class Groups:
    """Tokens of an (H, W) map in `count` groups, each a box of `size` (y, x) slots, row-major.

    index (count * slots) token in a slot, slot (H * W) of a token: None where groups are the map itself, in order.
    mask (1, count, slots, slots) additive, or None.
    step: pixels between neighbouring slots; extent: bound of the offsets between slots, as Position.bias takes it.
    """

    count: int
    size: tuple[int, int]
    extent: tuple[int, int]
    step: tuple[int, int] = (1, 1)
    index: Tensor | None = None
    slot: Tensor | None = None
    mask: Tensor | None = None


class MultiHead(Attention):
    """Softmax attention with weights `qkv` (q, k, v, each head-major) and `proj`; subclasses give `pairs`."""

    supports_position = ("rotate", "bias")

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def flops(self, height: int, width: int) -> int:
        """Projections, and scores and sums over the pairs that can attend (masked pairs are not counted)."""
        return 8 * height * width * self.dim**2 + 4 * self.dim * self.pairs(height, width)

    def pairs(self, height: int, width: int) -> int:
        """How many (query, key) pairs attend, per head."""
        raise NotImplementedError(f"{type(self).__name__}.pairs")


class Grouped(MultiHead):
    """Softmax attention inside groups of tokens; subclasses give `groups`."""

    def groups(self, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Groups:
        raise NotImplementedError(f"{type(self).__name__}.groups")

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        qkv = self.qkv(x)
        groups = self.groups(height, width, x.device, qkv.dtype)
        q, k, v = self.split(qkv, groups)
        drop = self.attn_drop if self.training else 0.0
        out = grouped_attention(q, k, v, self.mask(groups, q), dropout_p=drop)
        out = out.permute(0, 2, 3, 1, 4).reshape(batch, -1, dim)  # (B, groups * slots, C)
        if groups.slot is not None:
            out = out.index_select(1, groups.slot)
        return self.proj_drop(self.proj(out.view(x.shape)))

    def split(self, qkv: Tensor, groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, W, 3 C) -> q, k, v (B, heads, groups, slots, head_dim), rotated by the position."""
        qkv = qkv.flatten(1, 2)
        if groups.index is not None:
            qkv = qkv.index_select(1, groups.index)
        qkv = qkv.view(len(qkv), groups.count, -1, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)
        if self.position is not None and self.position.hook == "rotate":
            coords = pixel_coords(*groups.size, q.device) * torch.tensor(groups.step, device=q.device)
            q, k = self.position.rotate(q, k, coords)
        return q, k, v

    def mask(self, groups: Groups, q: Tensor) -> Tensor | None:
        """Additive (heads or 1, groups or 1, slots, slots) of q's dtype: the groups' mask plus the position's bias."""
        if self.position is None or self.position.hook != "bias":
            return groups.mask
        offsets = pairwise_offsets(*groups.size, q.device)
        bias = self.position.bias(offsets, groups.extent).to(q.dtype)[:, None]
        return bias if groups.mask is None else bias + groups.mask

    def attention_map(self, x: Tensor) -> Tensor:
        """(B, heads, N, N) softmax weights, without dropout; zero between tokens of different groups."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x)
        groups = self.groups(height, width, x.device, qkv.dtype)
        q, k, _ = self.split(qkv, groups)
        logits = scores(q, k)
        mask = self.mask(groups, q)
        weights = (logits if mask is None else logits + mask).softmax(-1)  # (B, heads, groups, slots, slots)
        slots = weights.shape[-1]
        weights = weights.flatten(2, 3)
        tokens = torch.arange(height * width, device=x.device)
        slot = tokens if groups.slot is None else groups.slot
        index = tokens if groups.index is None else groups.index
        keys = index.view(groups.count, slots)[slot // slots]  # (N, slots)
        weights = weights.index_select(2, slot)
        dense = weights.new_zeros(batch, self.num_heads, height * width, height * width)
        return dense.scatter_add(3, keys.expand_as(weights), weights)


def scores(q: Tensor, k: Tensor) -> Tensor:
    """q k^T / sqrt(head_dim) in float32 at least, for attention maps."""
    precise = torch.promote_types(q.dtype, torch.float32)
    return q.to(precise) @ k.to(precise).mT * q.shape[-1] ** -0.5

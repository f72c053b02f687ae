"""Window attention: the map is cut into windows and each attends to itself; shifted windows connect neighbours.

Paper: Swin Transformer (Liu et al., 2021), arXiv:2103.14030; without shift also MaxViT's block attention
    out_w = softmax(Q_w K_w^T / sqrt(d) + mask) V_w          for each window w of window_size^2 tokens
    shift s: windows start at s - window_size, s, s + window_size, ...; a cyclic roll packs the partial windows at
    both ends into one, where the mask keeps tokens apart that are not neighbours
Cost: O(N dim^2 + N window_size^2 dim) time, O(N window_size^2) extra memory at most.
Departs from Swin's release: padded tokens are masked as keys (there they are seen, as the bias of their projection),
and the map is padded before it is rolled, which keeps windows apart also on maps that windows do not divide.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from vantage.attention.base import note, pair
from vantage.attention.multihead import Grouped, Groups
from vantage.attention.partition import AxisGroups, combine
from vantage.ops.constants import cached_constant
from vantage.position.base import Position


class Window(Grouped):
    cost = "8*N*dim^2 + 4*N*window_size^2*dim"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int | Sequence[int] = 7,
        shift: int | Sequence[int] | Literal["half"] = 0,
        clamp: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        """shift: pixels by which the windows are displaced, or "half" of the window; none on an axis that has only
        one window. clamp: a window larger than the map takes the map's size; False raises instead."""
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, position=position)
        self.window_size = pair(window_size, "attention.window_size")
        if shift != "half":
            if isinstance(shift, str):
                raise ValueError(f"attention.shift={shift!r}; use half, an integer or two of them (y, x)")
            shift = pair(shift, "attention.shift", minimum=0)
            if any(by >= size for by, size in zip(shift, self.window_size)):
                raise ValueError(
                    f"window: shift {shift} is not below window_size {self.window_size}; use attention.shift=half"
                )
        self.shift = shift
        self.clamp = clamp
        if position is not None:
            position.fit(self.window_size)

    def layout(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Window size and shift on a map of this size."""
        lengths = (height, width)
        size = tuple(min(window, length) for window, length in zip(self.window_size, lengths))
        if size != self.window_size:
            if not self.clamp:
                raise ValueError(
                    f"window: window_size {self.window_size} does not fit the {height}x{width} map and attention.clamp "
                    f"is false; use attention.window_size={min(lengths)} or attention.clamp=true"
                )
            note(f"window: window_size {self.window_size} is clamped to {size} on the {height}x{width} map")
        shift = tuple(s // 2 for s in size) if self.shift == "half" else self.shift
        return size, tuple(0 if s == length else by for s, length, by in zip(size, lengths, shift))

    def groups(self, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Groups:
        size, shift = self.layout(height, width)
        index, slot, mask = window_groups(height, width, size, shift, device, dtype)
        count = -(-height // size[0]) * -(-width // size[1])
        return Groups(count, size, extent=self.window_size, index=index, slot=slot, mask=mask)

    def pairs(self, height: int, width: int) -> int:
        size, shift = self.layout(height, width)
        sums = 1
        for length, window, by in zip((height, width), size, shift):
            bounds = sorted({0, length, *range(by, length, window)})
            sums *= sum((end - start) ** 2 for start, end in pairwise(bounds))
        return sums

    def extra_repr(self) -> str:
        return f"window_size={self.window_size}, shift={self.shift}"


@cached_constant
def window_groups(
    height: int, width: int, size: tuple[int, int], shift: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    axes = [axis_windows(*axis, device) for axis in zip((height, width), size, shift)]
    return combine(axes, (height, width), dtype)


def axis_windows(length: int, size: int, shift: int, device: torch.device) -> AxisGroups:
    count = -(-length // size)
    rolled = torch.arange(count * size, device=device).view(count, size)
    position = (rolled + shift) % (count * size)
    region = torch.div(position - shift, size, rounding_mode="floor") if shift else None  # the window before the roll
    token = (torch.arange(length, device=device) - shift) % (count * size)
    return AxisGroups(position, region, token // size, token % size)

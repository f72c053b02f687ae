"""Grid attention: a sparse global attention, each token with the tokens at a fixed stride that spans the map.

Paper: MaxViT (Tu et al., 2022), arXiv:2204.01697
    the map is cut into a grid_size x grid_size grid of cells; tokens at the same place of their cells form a group
    out_g = softmax(Q_g K_g^T / sqrt(d) + bias) V_g          for each group g of grid_size^2 tokens
Cost: O(N dim^2 + N grid_size^2 dim) time, O(N grid_size^2) extra memory at most.
Departs from the paper on maps that the grid does not divide: cells are ceil(L / grid_size) long, and what they reach
beyond the map is masked. A position sees tokens one cell apart as one step apart (rel_bias) or as far as they are in
pixels (rope_axial).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vantage.attention.base import note, pair
from vantage.attention.multihead import Grouped, Groups
from vantage.attention.partition import AxisGroups, combine
from vantage.ops.constants import cached_constant
from vantage.position.base import Position


class Grid(Grouped):
    cost = "8*N*dim^2 + 4*N*grid_size^2*dim"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        grid_size: int | Sequence[int] = 7,
        clamp: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        """clamp: a grid with more cells than the map has tokens takes the map's size; False raises instead."""
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, position=position)
        self.grid_size = pair(grid_size, "attention.grid_size")
        self.clamp = clamp
        if position is not None:
            position.fit(self.grid_size)

    def layout(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Length of a cell in pixels, and cells per axis, of which the last may be partial."""
        if height < self.grid_size[0] or width < self.grid_size[1]:
            if not self.clamp:
                raise ValueError(
                    f"grid: grid_size {self.grid_size} does not fit the {height}x{width} map and attention.clamp is "
                    f"false; use attention.grid_size={min(height, width)} or attention.clamp=true"
                )
            note(f"grid: grid_size {self.grid_size} is clamped on the {height}x{width} map")
        lengths = (height, width)
        step = tuple(-(-length // cells) for length, cells in zip(lengths, self.grid_size))
        return step, tuple(-(-length // by) for length, by in zip(lengths, step))

    def groups(self, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Groups:
        step, cells = self.layout(height, width)
        index, slot, mask = grid_groups(height, width, step, cells, device, dtype)
        return Groups(step[0] * step[1], cells, self.grid_size, step=step, index=index, slot=slot, mask=mask)

    def pairs(self, height: int, width: int) -> int:
        product = 1
        for length, step in zip((height, width), self.layout(height, width)[0]):
            product *= sum((-(-(length - residue) // step)) ** 2 for residue in range(step))
        return product

    def extra_repr(self) -> str:
        return f"grid_size={self.grid_size}"


@cached_constant
def grid_groups(
    height: int, width: int, step: tuple[int, int], cells: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    axes = [axis_grid(*axis, device) for axis in zip((height, width), step, cells)]
    return combine(axes, (height, width), dtype)


def axis_grid(length: int, step: int, cells: int, device: torch.device) -> AxisGroups:
    position = torch.arange(cells * step, device=device).view(cells, step).mT
    token = torch.arange(length, device=device)
    return AxisGroups(position, None, token % step, token // step)

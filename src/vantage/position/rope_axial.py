"""Axial rotary embedding: half of a head's channel pairs rotate with y, the other half with x.

Papers: RoFormer (Su et al., 2021), arXiv:2104.09864; its axial form for images: EVA-02, arXiv:2303.11331, and
    Rotary Position Embedding for Vision Transformer (Heo et al., 2024), arXiv:2403.13298
    (a, b) -> (a cos t - b sin t, a sin t + b cos t)      t = coordinate * base^(-4 i / head_dim), i < head_dim / 4
so that q_i . k_j depends on the pixel offset j - i only. Channels: [a's of y, a's of x, b's of y, b's of x], a quarter
of head_dim each, so that swapping a and b is one roll.
Cost: no parameters, O(N * head_dim) per call; angles in float32 whatever the precision of q and k.
"""

import torch
from torch import Tensor

from vantage.position.base import Position


class RopeAxial(Position):
    hook = "rotate"

    def __init__(self, head_dim: int, num_heads: int, *, base: float = 100.0):
        super().__init__(head_dim, num_heads)
        if head_dim % 4:
            raise ValueError(
                f"rope_axial: head_dim {head_dim} is not a multiple of 4, the pairs of two axes; use position=rel_bias "
                "or another number of heads"
            )
        if base <= 0:
            raise ValueError(f"rope_axial: base={base!r}; use a positive number, 100 for images")
        self.base = base

    def rotate(self, q: Tensor, k: Tensor, coords: Tensor) -> tuple[Tensor, Tensor]:
        quarter = self.head_dim // 4
        precise = torch.promote_types(q.dtype, torch.float32)
        steps = torch.arange(quarter, device=coords.device, dtype=precise)
        angles = coords.to(precise)[..., None] * self.base ** (-steps / quarter)  # (N, 2, head_dim / 4)
        cos, sin = angles.cos().flatten(-2), angles.sin().flatten(-2)  # (N, head_dim / 2)
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return turn(q, cos, sin), turn(k, cos, sin)

    def extra_repr(self) -> str:
        return f"base={self.base}"


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x * cos + x.roll(x.shape[-1] // 2, -1) * sin).to(x.dtype)

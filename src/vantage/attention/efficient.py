"""Efficient attention: queries and keys are normalised apart, so that keys meet the values first; linear in N.

Paper: Efficient Attention: Attention with Linear Complexities (Shen et al., 2018), arXiv:1812.01243
    out = rho_q(Q) (rho_k(K)^T V), per head of d = dim / num_heads channels, then a linear projection          (N, d)
    normalisation=softmax: rho_q is a softmax over the d channels of a token, rho_k one over the N tokens of a channel
    normalisation=scaling: both divide by sqrt(N), so that out = (Q K^T / N) V exactly
    There is no 1/sqrt(d) and no position.
Cost: 4 N dim head_dim beside the projections' 8 N dim^2; memory O(N dim). Linear in N.

`attention_map` is rho_q(Q) rho_k(K)^T: with softmax its rows are non-negative and sum to one, though they are not those
of softmax(Q K^T). With scaling the products have any sign and sum, and there is no map.

Departs from the paper and the release (cmsflash/efficient-attention): keys and values have dim channels, not fewer, and
the residual the release adds inside is left to the backbone, as for every attention here. Its three 1x1 convolutions
are one linear layer `qkv`, in the order q, k, v of softmax attention, so that pretrained weights fit. Only the softmax
normalisation is in the release.
"""

import torch
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.attention.linear import merge_heads, split_heads
from vantage.position.base import Position

NORMALISATIONS = ("softmax", "scaling")


class Efficient(Attention):
    needs_grid = False
    cost = "8*N*dim^2 + 4*N*dim^2/num_heads"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        normalisation: str = "softmax",
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"efficient: normalisation {normalisation!r} is not one of {', '.join(NORMALISATIONS)}")
        self.refuse_attn_drop(attn_drop)
        self.normalisation = normalisation
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"normalisation={self.normalisation}"

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        q, k = (part.to(v.dtype) for part in self.normalised(q, k))
        out = q @ (k.mT @ v)  # (B, heads, N, head_dim), through the (head_dim, head_dim) context
        return self.proj_drop(self.proj(merge_heads(out, *x.shape[1:3])))

    def normalised(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """rho_q(q) and rho_k(k) of (B, heads, N, head_dim); the softmaxes in float32 or float64."""
        if self.normalisation == "scaling":
            return q * q.shape[-2] ** -0.5, k * k.shape[-2] ** -0.5
        full = torch.promote_types(q.dtype, torch.float32)
        return q.softmax(dim=-1, dtype=full), k.softmax(dim=-2, dtype=full)

    def attention_map(self, x: Tensor) -> Tensor:
        """rho_q(Q) rho_k(K)^T, the weights of the softmax normalisation."""
        if self.normalisation != "softmax":
            raise ValueError(
                f"efficient: normalisation={self.normalisation} has no attention map, its products may be negative and "
                "do not sum to one; use normalisation=softmax"
            )
        q, k = self.normalised(*(split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1)[:2]))
        return q @ k.mT

    def flops(self, height: int, width: int) -> int:
        return height * width * self.dim * (8 * self.dim + 4 * self.head_dim)

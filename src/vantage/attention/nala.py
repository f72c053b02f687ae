"""Norm-aware linear attention: the norm of a query sets the power, so how sharp, its features are; linear in N.

Paper: NaLaFormer: Norm-Aware Linear Attention for Transformer Models (Meng et al., 2025), arXiv:2506.21137, later
    Norm x Direction: Restoring the Missing Query Norm in Vision Linear Attention (ICML 2026); its release is followed
    n = ||q_i||, p = 3 (0.5 + tanh n), u = q_i / (n + 1e-6), per head; powers are entry by entry          (head_dim)
    phi(q_i) = [relu(u)^p, relu(-u)^p],  phi(k_j) = [relu(k_j)^3, relu(-k_j)^3]                      (2 head_dim)
    out_i = phi(q_i) (mean_j phi(k_j)^T v_j) / (phi(q_i) . mean_j phi(k_j) + 1e-6) + DWConv5x5(v)
    y = (LayerNorm(out) * silu(g)) W, with q, k, v, g four projections of x
Entries of opposite sign meet a zero, so that weights are not negative; p lies between 1.5 and 4.5.
With a position that rotates, the four parts of phi(q) and phi(k), each head_dim wide, are rotated in the numerator and
not in the normaliser. The released models always do: half of the channels turn with y, half with x, by angles from 1
down to 1e-4 a pixel, for which position=rope_axial with base 10000 is nearest (its last angle is 1e-4 to the power of
1 - 4 / head_dim, and it pairs channel i with i + head_dim / 2, not with its neighbour).
Cost: (8 head_dim + 4) N dim + 2 kernel_size^2 N dim beside the projections' 10 N dim^2; memory O(N dim). Linear in N.
Weights are named and shaped as in the release (ZacharyMeng/NaLaFormer): qkvg, lepe, ln, out_proj.

`attention_map` gives the weights phi(q_i) . phi(k_j) without the 1e-6 of the normaliser. Rotated they may be negative
and need not sum to one: with a position there is no map.

Departs from the release:
- It divides by n, which is 0 / 0 for a query of zero; 1e-6 is added.
- Queries are divided by their largest entry before any power is taken, keys by that of their head, where nothing can
  overflow and not all entries underflow. The result is the same: the factors of q cancel, that of k goes into 1e-6
  (not below 1e-30).
- Its position is an option here, see above. v and the products with it stay in the precision of x.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.attention.base import Attention, check_odd
from vantage.attention.linear import Lepe, merge_heads, shares, split_heads, weighted_means
from vantage.attention.multihead import rotated
from vantage.position.base import Position

EPSILON = 1e-6


class Nala(Attention):
    supports_position = ("rotate",)
    cost = "10*N*dim^2 + 8*N*dim^2/num_heads + 2*N*dim*(kernel_size^2 + 2)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel_size: int = 5,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        check_odd(kernel_size, "attention.kernel_size", usual=5)
        self.refuse_attn_drop(attn_drop)
        self.qkvg = nn.Linear(dim, 4 * dim, bias=qkv_bias)
        self.lepe = Lepe(dim, kernel_size)
        self.ln = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        q, k, v, gate = self.qkvg(x).chunk(4, dim=-1)
        q, k, epsilon = self.features(q, k)
        out = weighted_means(q, k, split_heads(v, self.num_heads), epsilon, self.turned(q, k, (height, width)))
        out = merge_heads(out, height, width) + self.lepe(v)
        # cast by hand: a norm of bfloat16 inputs with a float32 weight is not fused
        full = torch.promote_types(v.dtype, torch.float32)
        out = F.layer_norm(out.to(full), (self.dim,), self.ln.weight.to(full), self.ln.bias.to(full), self.ln.eps)
        return self.proj_drop(self.out_proj((out * F.silu(gate)).to(v.dtype)))

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi(q), c phi(k) / N (B, heads, N, 2 head_dim) and c 1e-6 (B, heads, 1, 1), of maps; float32 or float64."""
        full = torch.promote_types(q.dtype, torch.float32)
        q, k = (split_heads(t.to(full), self.num_heads) for t in (q, k))
        largest = torch.linalg.vector_norm(k.detach(), ord=math.inf, dim=(-2, -1), keepdim=True)
        largest = largest.clamp(min=torch.finfo(full).tiny)
        k = k / (largest * k.shape[-2] ** (1 / 3))
        # not quite zero, however long the keys, for queries of zero
        return both_signs(norm_aware(q)), both_signs(k * k * k), (EPSILON / largest**3).clamp(min=1e-30)

    def turned(self, q: Tensor, k: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
        """The features, each of their two parts rotated by the position; None without one."""
        if self.position is None:
            return None
        q, k = (t.unflatten(-1, (2, -1)).movedim(-2, 2) for t in (q, k))  # (B, heads, 2, N, head_dim)
        return tuple(torch.cat(t.unbind(2), dim=-1) for t in rotated(self.position, q, k, size))

    def attention_map(self, x: Tensor) -> Tensor:
        if self.position is not None:
            raise ValueError("nala: with a position there is no attention map, weights may be negative; use none")
        return shares(*self.features(*self.qkvg(x).chunk(4, dim=-1)[:2])[:2])

    def flops(self, height: int, width: int) -> int:
        tokens, dim = height * width, self.dim
        return tokens * dim * (10 * dim + 8 * self.head_dim + 4) + self.lepe.flops(height, width)


def norm_aware(q: Tensor) -> Tensor:
    """sign(q) (|q| / (||q|| + 1e-6))^p over the last axis, p = 3 (0.5 + tanh ||q||)."""
    # a constant in the gradient too: the result does not depend on it
    largest = torch.linalg.vector_norm(q.detach(), ord=math.inf, dim=-1, keepdim=True)
    largest = largest.clamp(min=torch.finfo(q.dtype).tiny)
    direction = q / largest
    norm = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    power = 3 * (0.5 + (norm * largest).tanh())
    return (direction / (norm + EPSILON / largest)).abs().pow(power).copysign(q)


def both_signs(x: Tensor) -> Tensor:
    """[relu(x), relu(-x)], twice as wide."""
    return torch.cat((x, -x), dim=-1).relu_()

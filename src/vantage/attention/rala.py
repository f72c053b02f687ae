"""Rank-augmented linear attention: keys weighted by how much all queries ask for them, and a gate; linear in N.

Paper: Breaking the Low-Rank Dilemma of Linear Attention (Fan, Huang, He, 2024), arXiv:2411.07635
    phi(x) = elu(x) + 1 of q and of k, per head                                                         (head_dim)
    a = softmax over the tokens of qbar . phi(k_j) / sqrt(head_dim),  qbar = mean_i phi(q_i)                   (N)
    S = sum_j a_j phi(k_j)^T v_j                                            the KV buffer, (head_dim, head_dim)
    out_i = phi(q_i) S / (phi(q_i) . sum_j a_j phi(k_j) + 1e-6) + DWConv5x5(v)
    y = (out * o) W, with q, k, v, o four projections of x; o has no activation
Both augmentations are of ranks: tokens count differently in S, and o takes the output of a head, whose rows lie in the
span of the head_dim rows of S, out of that span. `ranks` reports both.
With a position that rotates, phi(q) and a phi(k) are rotated in the numerator and not in the normaliser. The released
models always do: half of the channels turn with y, half with x, by angles from 1 down to 1e-4 a pixel, for which
position=rope_axial with base 10000 is nearest (its last angle is 1e-4 to the power of 1 - 4 / head_dim, and it pairs
channel i with i + head_dim / 2, not with its neighbour).
Cost: (4 head_dim + 2) N dim + 2 kernel_size^2 N dim beside the projections' 10 N dim^2; memory O(N dim). Linear in N.
Weights are named as in the release (qhfan/RALA): qkvo, lepe, proj; its 1x1 convolutions are linear layers here.

`attention_map` gives the weights phi(q_i) . a_j phi(k_j) without the 1e-6 of the normaliser, which is the release's and
absolute. Rotated they may be negative and need not sum to one: with a position there is no map.

The release multiplies a by N and divides the sums over tokens by N, which is the same. Its position is an option here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.attention.base import Attention, check_odd
from vantage.attention.linear import Lepe, merge_heads, shares, split_heads, weighted_means
from vantage.attention.multihead import rotated
from vantage.position.base import Position

EPSILON = 1e-6


class Rala(Attention):
    supports_position = ("rotate",)
    cost = "10*N*dim^2 + 4*N*dim^2/num_heads + 2*N*dim*(kernel_size^2 + 1)"

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
        self.qkvo = nn.Linear(dim, 4 * dim, bias=qkv_bias)
        self.lepe = Lepe(dim, kernel_size)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.proj(self.gated(x)))

    def gated(self, x: Tensor) -> Tensor:
        """out * o, (B, H, W, dim)."""
        size = x.shape[1:3]
        qk, v, gate = self.qkvo(x).split((2 * self.dim, self.dim, self.dim), dim=-1)
        q, k = self.features(qk)
        turned = None if self.position is None else rotated(self.position, q, k, size)
        out = weighted_means(q, k, split_heads(v, self.num_heads), EPSILON, turned)
        return (merge_heads(out, *size) + self.lepe(v)) * gate

    def features(self, qk: Tensor) -> tuple[Tensor, Tensor]:
        """phi(q) and a phi(k), (B, heads, N, head_dim) in float32 or float64, of a map of both (B, H, W, 2 dim)."""
        qk = qk.flatten(1, 2).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        qk = qk.contiguous()  # once, or every product would
        q, k = F.elu(qk.to(torch.promote_types(qk.dtype, torch.float32))).add_(1).unbind()
        return q, k * self.importance(q, k)

    def importance(self, q: Tensor, k: Tensor) -> Tensor:
        """a, (B, heads, N, 1), of features."""
        # an elementwise sum, not a matmul, so that autocast leaves it in float32
        logits = (q.mean(dim=-2, keepdim=True) * self.head_dim**-0.5 * k).sum(dim=-1, keepdim=True)
        return logits.softmax(dim=-2)

    def attention_map(self, x: Tensor) -> Tensor:
        if self.position is not None:
            raise ValueError("rala: with a position there is no attention map, weights may be negative; use none")
        return shares(*self.features(self.qkvo(x)[..., : 2 * self.dim]))

    @torch.no_grad()
    def ranks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Numerical ranks of each head's KV buffer (B, heads), without position, and of the output before W (B)."""
        qk, v = self.qkvo(x)[..., : 3 * self.dim].split((2 * self.dim, self.dim), dim=-1)
        k = self.features(qk)[1]
        buffer = k.mT @ split_heads(v, self.num_heads).to(k.dtype)
        output = self.gated(x).to(k.dtype).flatten(1, 2)
        return torch.linalg.matrix_rank(buffer), torch.linalg.matrix_rank(output)

    def flops(self, height: int, width: int) -> int:
        tokens, dim = height * width, self.dim
        return tokens * dim * (10 * dim + 4 * self.head_dim + 2) + self.lepe.flops(height, width)

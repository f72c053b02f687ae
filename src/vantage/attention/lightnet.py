"""LightNet attention: keys normalised over all tokens at once, a gated norm after the heads; linear in N.

Paper: You Only Scan Once: Efficient Multi-dimension Sequential Modeling with LightNet (Qin et al., 2024),
    arXiv:2405.21022
    S = sum_j K_j^T v_j,  K = softmax of k over the N tokens, channel by channel                (head_dim, head_dim)
    out_i = norm(silu(q_i) S of all heads) * a(x_i G1 G2), then a linear projection
    norm: RMS over all dim channels, with a weight; G1 (dim, gate_rank), G2 (gate_rank, dim); a = sigmoid or silu
S is where the additive recurrence S_t = (Z_{t-1} S_{t-1} + exp(k_t)^T v_t) / Z_t, Z_t = sum_{s <= t} exp(k_s), ends in
whatever order it meets the tokens, so that a map needs one pass and no order.
A position that rotates turns silu(q) and K: the paper's MD-LRPE, each axis with its own channels. rope_axial with its
base of 100 has the angles of MD-LRPE with base 10000 in one head; the author's layer for maps continues the same
series of frequencies from head to head, rope_axial repeats it.
Cost: 4 N dim head_dim + 4 N dim gate_rank beside the projections' 8 N dim^2; memory O(N dim). Linear in N.

q K^T has any sign and sum, and a norm follows: there is no attention map.

The paper's repository (OpenNLPLab/LightNet) could not be read. The equations are those of its first author's layer
that is not causal (Doraemonzzz/notes, script/lightnet_compile), which the causal ones of Doraemonzzz/xmixers and
fla-org/flash-linear-attention (fla/layers/lightnet.py) agree with up to the norm and the gate:
    notes     LayerNorm, then * sigmoid of the gate; gate_rank head_dim; with biases; eps 1e-6
    fla       RMS, then * silu of the gate: gate_activation=silu; gate_rank 128; without biases; eps 1e-6
    xmixers   * sigmoid of the gate, then RMS; gate_rank head_dim; without biases; eps 1e-5; Z starts at 1, not 0
Here it is notes with the RMS norm of the other two. A factor of q, such as fla's 1/sqrt(head_dim), cancels in the norm
but for eps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.attention.linear import merge_heads, split_heads
from vantage.attention.multihead import rotated
from vantage.position.base import Position

GATES = {"sigmoid": torch.sigmoid, "silu": F.silu}


class Lightnet(Attention):
    needs_grid = False  # a position does need it
    supports_position = ("rotate",)
    cost = "8*N*dim^2 + 4*N*dim^2/num_heads + 4*N*dim*gate_rank"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        gate_activation: str = "sigmoid",
        gate_rank: int | None = None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        if gate_activation not in GATES:
            raise ValueError(f"lightnet: gate_activation {gate_activation!r} is not one of {', '.join(GATES)}")
        if gate_rank is not None and (not isinstance(gate_rank, int) or gate_rank < 1):
            raise ValueError(f"lightnet: gate_rank {gate_rank!r} is not a whole number >= 1; null takes head_dim")
        self.refuse_attn_drop(attn_drop)
        self.gate_activation = gate_activation
        self.gate_rank = gate_rank or self.head_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.gate = nn.Sequential(
            nn.Linear(dim, self.gate_rank, bias=qkv_bias), nn.Linear(self.gate_rank, dim, bias=qkv_bias)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"gate_activation={self.gate_activation}"

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        full = torch.promote_types(v.dtype, torch.float32)
        q, k = F.silu(q), k.softmax(dim=-2, dtype=full)
        q, k = rotated(self.position, q, k, (height, width))
        out = q.to(v.dtype) @ (k.to(v.dtype).mT @ v)  # (B, heads, N, head_dim), through S
        # cast by hand: a norm of bfloat16 inputs with a float32 weight is not fused
        out = merge_heads(out, height, width).to(full)
        out = F.rms_norm(out, (self.dim,), self.norm.weight.to(full), self.norm.eps)
        out = out * GATES[self.gate_activation](self.gate(x))
        return self.proj_drop(self.proj(out.to(v.dtype)))

    def attention_map(self, x: Tensor) -> Tensor:
        raise ValueError("lightnet: there is no attention map, its products may be negative and a norm follows them")

    def flops(self, height: int, width: int) -> int:
        return height * width * self.dim * (8 * self.dim + 4 * self.head_dim + 4 * self.gate_rank)

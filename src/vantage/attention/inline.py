"""InLine attention: linear attention whose weights sum to one by subtraction, beside a local convolution of the values.

Paper: Bridging the Divide: Reconsidering Softmax and Linear Attention (Han et al., 2024), arXiv:2412.06590
    w_ij = (s / N) (f(q_i) . f(k_j) - mean_l f(q_i) . f(k_l)) + 1 / N,   s = 1 / sqrt(head_dim), per head     (N, N)
    out_i = sum_j w_ij v_j + L(v)_i, then a linear projection
    f = identity, relu, leakyrelu (slope 0.01) or exp (of 0.2 x), entry by entry
    L: depthwise 3x3 kernels, zero padding, that differ between images: of the mean token of x by a 1x1 convolution
       from dim to dim channels, GELU and one to 9 dim channels, both grouped by heads
Queries of different features have different rows of weights, if the keys' features less their mean span head_dim
dimensions: hence "injective".
Cost: 4 N dim head_dim + 18 N dim + 20 dim head_dim beside the projections' 8 N dim^2; memory O(N dim). Linear in N.
Weights are named and shaped as in the release (LeapLabTHU/InLine, its Swin form): qkv, proj, residual.

Computed as q_i (s/N sum_j (k_j - mean k)^T v_j) + mean v, the same sum: the mean comes off the keys in float32, before
any product, so that bfloat16 has no difference of two large products to lose the values in.

The weights may be negative, so there is no attention map.

Departs from the release: it accepts attn_drop and ignores it; here it is refused, there is no matrix to drop from. A
map has no class token, which the release's DeiT leaves out of L. The kernels of a batch are one convolution with
batch * dim groups, as in the release, which needs v with its channels first: one transposed copy there and back.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.attention.linear import merge_heads, split_heads
from vantage.position.base import Position


def tempered_exp(x: Tensor) -> Tensor:
    return (0.2 * x.to(torch.promote_types(x.dtype, torch.float32))).exp()


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "leakyrelu": F.leaky_relu,
    "exp": tempered_exp,
}


class Inline(Attention):
    cost = "8*N*dim^2 + 4*N*dim^2/num_heads + 18*N*dim + 20*dim^2/num_heads"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel: str = "identity",
        local_residual: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        if kernel not in KERNELS:
            raise ValueError(f"inline: kernel {kernel!r} is not one of {', '.join(KERNELS)}")
        self.refuse_attn_drop(attn_drop)
        self.kernel = kernel
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.residual = None
        if local_residual:
            self.residual = nn.Sequential(
                nn.Conv1d(dim, dim, kernel_size=1, groups=num_heads),
                nn.GELU(),
                nn.Conv1d(dim, 9 * dim, kernel_size=1, groups=num_heads),
            )

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}"

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out = self.mix(*(split_heads(part, self.num_heads) for part in (q, k, v)))
        out = merge_heads(out, *x.shape[1:3])
        if self.residual is not None:
            out = out + self.local(x, v)
        return self.proj_drop(self.proj(out))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """sum_j w_ij v_j of (B, heads, N, head_dim); the means and what is left of the keys in float32 or float64."""
        full = torch.promote_types(v.dtype, torch.float32)
        feature = KERNELS[self.kernel]
        q, k = feature(q), feature(k)
        scale = self.head_dim**-0.5 / k.shape[-2]
        # scale * (k - mean k), in one pass over k
        centred = torch.add(-scale * k.mean(dim=-2, keepdim=True, dtype=full), k, alpha=scale)
        mean = v.mean(dim=-2, keepdim=True, dtype=full).to(v.dtype)
        return q.to(v.dtype) @ (centred.to(v.dtype).mT @ v) + mean

    def local(self, x: Tensor, v: Tensor) -> Tensor:
        """L of the map v (B, H, W, dim), with kernels that the mean of x chooses."""
        batch, height, width, dim = v.shape
        kernels = self.residual(x.mean(dim=(1, 2))[..., None]).reshape(batch * dim, 1, 3, 3)
        v = v.permute(0, 3, 1, 2).reshape(1, batch * dim, height, width)
        out = F.conv2d(v, kernels, padding=1, groups=batch * dim)
        return out.reshape(batch, dim, height, width).permute(0, 2, 3, 1)

    def attention_map(self, x: Tensor) -> Tensor:
        raise ValueError("inline: there is no attention map, its weights sum to one but may be negative")

    def flops(self, height: int, width: int) -> int:
        tokens, dim = height * width, self.dim
        local = 0 if self.residual is None else 18 * tokens * dim + 20 * dim * self.head_dim
        return tokens * dim * (8 * dim + 4 * self.head_dim) + local

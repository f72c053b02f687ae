"""Polynomial attention (PADRe): products of convolved maps, a polynomial of the input without softmax or division.

Paper: PADRe: A Unifying Polynomial Attention Drop-in Replacement for Efficient Vision Transformer (Letourneau et al.,
2024), arXiv:2407.11306
    Y_i = A_i X B_i, i = 1..d          B_i mixes channels (a linear layer), A_i tokens (a convolution per channel)
    Z_1 = Y_1,  Z_i+1 = (C_i Z_i D_i) * Y_i+1          C_i mixes tokens, D_i channels, * entry by entry
    out = Z_d                                                                                      (H, W, dim)
Without biases the entries of Z_i are homogeneous polynomials of degree i in those of X; the biases of the layers add
the lower degrees, and the residual around the block degree 1. The paper finds little beyond degree 3.
Cost: (2 degree - 1)(2 N dim^2 + 2 kernel_size^2 N dim) time, O(degree N dim) memory. Linear in N.

There are no heads (the paper found none to help): num_heads changes nothing. There is no attention matrix either.
A kernel larger than the map is cropped to it, which is exact as zeros lie around the map.

Start: torch's own, in which a linear layer and a convolution shrink a map of unit variance by the square root of 3
each. The later factors are small then and no power blows up: but for the biases Z_2 starts at 1/27 of the deviation of
X and Z_3 at 1/243; the biases raise that to about 1/23 and 1/50. X must come out of a normalisation, as it does in the
blocks of a transformer.

No code is released. From the paper: the equations, one head, 11x11 kernels, biases as the terms of degree 0, and that
the residual is the term of degree 1. Ours: convolutions with a kernel per channel, where A X has one for all; channels
are mixed before tokens; both mixes have biases, which qkv_bias=false takes away together.
"""

import torch
from torch import Tensor, nn

from vantage.attention.base import Attention, check_odd
from vantage.attention.convolution import depthwise, depthwise_flops
from vantage.position.base import Position


class Mix(nn.Module):
    """A X B: a linear layer over the channels, then a convolution of each channel over the map."""

    def __init__(self, dim: int, out_dim: int, kernel_size: int, bias: bool):
        super().__init__()
        self.channels = nn.Linear(dim, out_dim, bias=bias)
        self.tokens = nn.Conv2d(out_dim, out_dim, kernel_size, groups=out_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise(self.channels(x), self.tokens.weight.squeeze(1), self.tokens.bias)


class Padre(Attention):
    cost = "(2*degree - 1)*(2*N*dim^2 + 2*N*dim*kernel_size^2)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        degree: int = 2,
        kernel_size: int = 11,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        if not isinstance(degree, int) or degree < 1:
            raise ValueError(f"padre: degree {degree!r} is no positive integer; the paper uses 2 and 3")
        check_odd(kernel_size, "attention.kernel_size", usual=11)
        self.refuse_attn_drop(attn_drop)
        self.degree = degree
        self.kernel_size = kernel_size
        self.factors = Mix(dim, degree * dim, kernel_size, qkv_bias)  # Y_1 .. Y_d, one after the other
        self.steps = nn.ModuleList(Mix(dim, dim, kernel_size, qkv_bias) for _ in range(degree - 1))
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"degree={self.degree}, kernel_size={self.kernel_size}"

    def forward(self, x: Tensor) -> Tensor:
        power, *factors = self.factors(x).chunk(self.degree, dim=-1)
        for step, factor in zip(self.steps, factors):
            power = torch.mul(step(power), factor)
        return self.proj_drop(power)

    def flops(self, height: int, width: int) -> int:
        per_mix = 2 * height * width * self.dim**2 + depthwise_flops(self.dim, self.kernel_size, height, width)
        return (2 * self.degree - 1) * per_mix

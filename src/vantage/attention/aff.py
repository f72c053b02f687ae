"""Adaptive frequency filter: a mask computed from the spectrum multiplies the spectrum, a convolution over the map.

Paper: Adaptive Frequency Filters As Efficient Global Token Mixers (Huang et al., 2023), arXiv:2307.14008
    S = rfft2(X), orthonormal                                                       (H, W // 2 + 1, dim) complex
    M(S) = shrink(W_2 act(W_1 S + b_1) + b_2)         complex matrices, block diagonal, the same at every frequency
    out = irfft2(M(S) * S) + X
act takes real and imaginary parts apart, and so does shrink(a) = sign(a) max(|a| - sparsity_threshold, 0).
A product of spectra is a circular convolution: out - X is X convolved with irfft2(M) (in its default normalisation), a
kernel as large as the map, made for each image and channel.
Cost: 16 (H (W / 2 + 1)) dim^2 / blocks for the mask and 5 N dim log2 N for the two transforms; O(N dim) memory.
Parameters w1, b1, w2, b2 are shaped as in the release (microsoft/TokenMixers), a first axis holding real and imaginary
parts, and drawn from 0.02 times a normal distribution; they know no map size.

X comes back inside the mixer, as in the release: in a block with a residual of its own it is added twice. There are
no heads: num_heads changes nothing, the blocks are `num_blocks`. There is no attention matrix.
All of it is computed in float32, also under autocast, and in float64 for float64.

Departs from the release:
- It refuses channels that num_blocks does not divide. Here there are gcd(num_blocks, dim) blocks.
- qkv_bias=false takes b1 and b2 away; there they are always. Few entries then pass the threshold at first.
- The complex layers are complex products, over channels that lie as the transform leaves them; the same numbers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.attention.convolution import real_transform_flops
from vantage.position.base import Position

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
SPREAD = 0.02  # standard deviation of all parameters at first


class Aff(Attention):
    cost = "8*N*dim^2/num_blocks + 5*N*dim*log2(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_blocks: int = 8,
        activation: str = "relu",
        sparsity_threshold: float = 0.01,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        if not isinstance(num_blocks, int) or num_blocks < 1:
            raise ValueError(f"aff: num_blocks {num_blocks!r} is no positive integer; the paper uses 8")
        if activation not in ACTIVATIONS:
            raise ValueError(f"aff: activation {activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
        if not sparsity_threshold >= 0:
            raise ValueError(f"aff: sparsity_threshold {sparsity_threshold} is negative; the paper uses 0.01")
        self.refuse_attn_drop(attn_drop)
        self.num_blocks = math.gcd(num_blocks, dim)
        self.activation = activation
        self.sparsity_threshold = sparsity_threshold
        width = dim // self.num_blocks
        for layer in (1, 2):
            weight, bias = torch.randn(2, self.num_blocks, width, width), torch.randn(2, self.num_blocks, width)
            self.register_parameter(f"w{layer}", nn.Parameter(SPREAD * weight))
            self.register_parameter(f"b{layer}", nn.Parameter(SPREAD * bias) if qkv_bias else None)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return (
            f"num_blocks={self.num_blocks}, activation={self.activation}, sparsity_threshold={self.sparsity_threshold}"
        )

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            signal = x.to(torch.promote_types(x.dtype, torch.float32))
            # channels first, as a transform leaves its axes innermost anyway
            signal = signal.movedim(-1, 1)
            spectrum = torch.fft.rfft2(signal, norm="ortho")
            filtered = self.mask(spectrum) * spectrum
            out = torch.fft.irfft2(filtered, s=x.shape[1:3], norm="ortho") + signal
            out = out.movedim(1, -1)
        return self.proj_drop(out.to(x.dtype))

    def mask(self, spectrum: Tensor) -> Tensor:
        """(B, dim, H, W // 2 + 1) complex -> the same."""
        hidden = complex_layer(spectrum.flatten(2).unflatten(1, (self.num_blocks, -1)), self.w1, self.b1)
        hidden = torch.view_as_complex(ACTIVATIONS[self.activation](torch.view_as_real(hidden)))
        hidden = torch.view_as_real(complex_layer(hidden, self.w2, self.b2))
        return torch.view_as_complex(F.softshrink(hidden, self.sparsity_threshold)).view(spectrum.shape)

    def flops(self, height: int, width: int) -> int:
        layers = 16 * height * (width // 2 + 1) * self.dim**2 // self.num_blocks
        return layers + 2 * self.dim * real_transform_flops(height * width)


def complex_layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, blocks, c, M) by complex matrices whose real and imaginary parts are given, (2, blocks, c, c)."""
    out = torch.complex(*weight.to(x.real.dtype)).mT @ x
    return out if bias is None else out + torch.complex(*bias.to(x.real.dtype))[..., None]

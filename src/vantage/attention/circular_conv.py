"""Circular-convolutional attention (CAT): one softmax over the tokens, rolled on by one token for each query.

Paper: CAT: Circular-Convolutional Attention for Sub-Quadratic Transformers (Yamada, 2025), arXiv:2504.06704
    z = X W_A                                                                          (N, heads), a score per token
    w = softmax(z) over the N tokens,  out_i = sum_j w[(j - i) mod N] V_j              per head; V = X W_V
    then a linear projection
The matrix w[(j - i) mod N] is circulant: a cyclic correlation of w with V, taken between Fourier transforms along the
tokens. Its rows and its columns sum to one, so nothing is divided by N. Tokens stand in raster order: a roll at the end
of a row goes on in the next one.
    variant=cat          the above: dim (heads + dim) parameters and the projection's, instead of 3 dim^2
    variant=cat_avg_key  z_i = q_i . mean_j(k_j) / sqrt(d), from a `qkv` layer as softmax attention has
CAT-Alter, in which every second layer is softmax attention, is a matter of slots:
'model.slots=["blocks.*[13579].attn"]' swaps every second block of a ViT and leaves timm's attention in the others.
Cost: 4 N dim^2 + 2 N dim heads time for the layers of either variant and (dim + heads / 2) 5 N log2 N for the
transforms; O(N dim) memory.

The mean of the keys is the key of the mean token, and q_i . k is x_i . (W_q^T k): cat_avg_key computes neither keys nor
queries of tokens. What is the same for all tokens leaves a softmax alone: W_A has no bias, and that of q has no effect.
A length N with a prime factor above 13 would be transformed by Bluestein's algorithm, each time through transforms of
at least 2 N - 1 points; there w is laid out once for the offsets -(N - 1) .. N - 1 on a longer circle that transforms
fast, where no offset meets another. The result is the same.
Scores do not compare tokens in pairs, and V_j is weighed by its offset: the host must add an absolute position to X.
Dropout acts on w, so that it drops an offset for all queries at once.

No code is released; the equations are those of the paper. Not here: the causal form, for a map has no order in time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.attention.base import Attention
from vantage.attention.convolution import fast_length, real_transform_flops, transforms_fast
from vantage.ops.constants import cached_constant
from vantage.position.base import Position

VARIANTS = ("cat", "cat_avg_key")


class CircularConv(Attention):
    needs_grid = False
    cost = "4*N*dim^2 + 2*N*dim*num_heads + (5*dim + 2.5*num_heads)*N*log2(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        variant: str = "cat",
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        if variant == "cat_alter":
            raise ValueError(
                "circular_conv: variant 'cat_alter' is a choice of layers, not a layer; use variant=cat and let "
                "model.slots name every second one, as in 'model.slots=[\"blocks.*[13579].attn\"]' for a ViT"
            )
        if variant not in VARIANTS:
            raise ValueError(f"circular_conv: variant {variant!r} is unknown; use one of {', '.join(VARIANTS)}")
        self.variant = variant
        self.attn_drop = attn_drop
        if variant == "cat":
            self.score = nn.Linear(dim, num_heads, bias=False)
            self.v = nn.Linear(dim, dim, bias=qkv_bias)
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"variant={self.variant}"

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        weights = F.dropout(self.weights(tokens), self.attn_drop, self.training)
        v = self.values(tokens)
        out = correlate(weights, v.to(weights.dtype)).to(v.dtype)
        return self.proj_drop(self.proj(out).view(x.shape))

    def weights(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, heads) in float32 at least, summing to one over the tokens."""
        z = self.score(tokens) if self.variant == "cat" else self.averaged_key_scores(tokens)
        return z.to(torch.promote_types(z.dtype, torch.float32)).softmax(1)

    def averaged_key_scores(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, heads): q_i . mean_j(k_j) / sqrt(d) but for a term that all tokens of a head share."""
        q, k, _ = self.qkv.weight.chunk(3)
        bias = None if self.qkv.bias is None else self.qkv.bias.chunk(3)[1]
        key = F.linear(tokens.mean(1), k, bias).unflatten(-1, (self.num_heads, -1))  # (B, heads, d)
        directions = torch.bmm(key.transpose(0, 1), q.unflatten(0, (self.num_heads, -1)))  # (heads, B, C)
        return torch.bmm(tokens, directions.permute(1, 2, 0)) * self.head_dim**-0.5

    def values(self, tokens: Tensor) -> Tensor:
        if self.variant == "cat":
            return self.v(tokens)
        bias = None if self.qkv.bias is None else self.qkv.bias[2 * self.dim :]
        return F.linear(tokens, self.qkv.weight[2 * self.dim :], bias)

    def attention_map(self, x: Tensor) -> Tensor:
        """The circulant matrix: w[(j - i) mod N] for every query i and key j."""
        weights = self.weights(x.flatten(1, 2)).mT  # (B, heads, N)
        count = weights.shape[-1]
        return weights[..., cyclic_offsets(count, x.device)]

    def flops(self, height: int, width: int) -> int:
        tokens, dim, heads = height * width, self.dim, self.num_heads
        layers = 4 * tokens * dim**2 + 2 * tokens * dim * heads
        if self.variant == "cat_avg_key":
            layers += 4 * dim**2  # the mean key, and its product with the query's layer
        return layers + (2 * dim + heads) * real_transform_flops(transform_length(tokens))


def transform_length(tokens: int) -> int:
    return tokens if transforms_fast(tokens) else fast_length(2 * tokens - 1)


def correlate(weights: Tensor, values: Tensor) -> Tensor:
    """sum_j weights[(j - i) mod N] values[j] for each i: (B, N, heads), (B, N, C) head-major -> (B, N, C)."""
    batch, tokens, heads = weights.shape
    length = transform_length(tokens)
    weights, values = weights.mT, values.mT  # channels first, as a transform wants and leaves them
    if length != tokens:
        gap = weights.new_zeros(batch, heads, length - 2 * tokens + 1)
        weights = torch.cat((weights, gap, weights[..., 1:]), -1)  # negative offsets at the end of the circle
    spectrum = torch.fft.rfft(values, n=length).unflatten(1, (heads, -1))
    product = torch.fft.rfft(weights).conj()[:, :, None] * spectrum
    return torch.fft.irfft(product, n=length)[..., :tokens].flatten(1, 2).mT


@cached_constant
def cyclic_offsets(tokens: int, device: torch.device) -> Tensor:
    """(N, N): (j - i) mod N."""
    index = torch.arange(tokens, device=device)
    return (index - index[:, None]) % tokens

"""Prototype cross-attention: a query reads, per head, the one pixel most similar to it among those of its mask.

Paper: PEM: Prototype-based Efficient MaskFormer for Image Segmentation (Cavagnero et al., 2024), arXiv:2402.19422
    K = norm(linear(dw3x3(BN(memory + position))))  (B, HW, d),   G = norm(linear(LN(q + query_position)))  (B, Q, d)
    per head: n* = argmax over pixels n with mask logit >= 0 of K_n . G,   p = K_n*
    out = q + linear(alpha * norm(linear(p * G)) + p),  norm is L2 over channels, alpha per channel
Then, both on the layer norm of their input and added to it (pre-norm), self-attention among the queries and an FFN.
Cost: O(HW Q d) for the similarities, of which only their argmax is kept: no softmax, no gradient through the choice.

The released code has both norm placements behind a flag that is off by default, and every configuration it ships sets
it (PRE_NORM: True): the published networks are pre-norm. `legacy` repeats two more of its traits: the inner norm runs
over the Q queries instead of the channels, and a query with an empty mask sees all pixels only if the masks of
all queries of its picture are empty; otherwise it reads the first pixel.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vantage.ops.constants import cached_constant
from vantage.tasks.segmentation.decoders.layers import BatchNorm


def prototypes(features: Tensor, queries: Tensor, masked: Tensor, *, num_heads: int, legacy: bool = False) -> Tensor:
    """features (B, N, d), queries (B, Q, d), masked (B, Q, N) bool, pixels not to choose -> (B, Q, d).

    A query whose pixels are all masked chooses among all of them.
    """
    features, queries = (one.unflatten(2, (num_heads, -1)).transpose(1, 2) for one in (features, queries))
    with torch.no_grad():
        blind = masked.all(-1, keepdim=True)
        if legacy:
            blind = blind.all(1, keepdim=True)
        similarity = queries @ features.mT  # (B, heads, Q, N)
        similarity = similarity.masked_fill((masked & ~blind)[:, None], -math.inf)
        nearest = similarity.argmax(-1, keepdim=True)  # (B, heads, Q, 1)
    chosen = features.gather(2, nearest.expand(-1, -1, -1, features.shape[-1]))
    return chosen.transpose(1, 2).flatten(2)


class PrototypeAttention(nn.Module):
    """queries, query_position (B, Q, dim), memory (B, dim, H, W), masked (B, Q, H * W) -> (B, Q, dim), residual added.

    `memory` comes with its position added.
    """

    def __init__(self, dim: int, num_heads: int, *, legacy: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.legacy = legacy
        self.memory_norm = BatchNorm(dim)
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.to_features = nn.Linear(dim, dim)
        self.query_norm = nn.LayerNorm(dim)
        self.to_queries = nn.Linear(dim, dim)
        self.mix = nn.Linear(dim, dim)
        self.alpha = nn.Parameter(torch.ones(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, query_position: Tensor, memory: Tensor, masked: Tensor) -> Tensor:
        local = self.local(self.memory_norm(memory)).flatten(2).mT  # (B, HW, dim)
        features = F.normalize(self.to_features(local), dim=-1)
        asked = F.normalize(self.to_queries(self.query_norm(queries + query_position)), dim=-1)
        found = prototypes(features, asked, masked, num_heads=self.num_heads, legacy=self.legacy)
        mixed = F.normalize(self.mix(found * asked), dim=1 if self.legacy else -1)
        return queries + self.proj(self.alpha * mixed + found)


class PrototypeLayer(nn.Module):
    """Prototype attention, self-attention of the queries and FFN; arguments and result as PrototypeAttention's."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, *, legacy: bool = False):
        super().__init__()
        self.cross = PrototypeAttention(dim, num_heads, legacy=legacy)
        self.self_norm = nn.LayerNorm(dim)
        self.self_attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.ReLU(), nn.Linear(ffn_dim, dim))
        for parameter in (*self.self_attention.parameters(), *self.ffn.parameters()):
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, queries: Tensor, query_position: Tensor, memory: Tensor, masked: Tensor) -> Tensor:
        queries = self.cross(queries, query_position, memory, masked)
        normed = self.self_norm(queries)
        placed = normed + query_position
        queries = queries + self.self_attention(placed, placed, normed, need_weights=False)[0]
        return queries + self.ffn(self.ffn_norm(queries))


@cached_constant
def sine_position(height: int, width: int, dim: int, device: torch.device) -> Tensor:
    """(dim, height, width): half of the channels encode the row, half the column, as sine and cosine in turn.

        angle_j(row) = 2 pi (row + 1) / height * 10000^(-2 j / (dim / 2)),  j = 0 .. dim / 4 - 1
    Source: DETR (Carion et al., 2020), arXiv:2005.12872, with positions as fractions of the map.
    """
    rates = 10000.0 ** (-torch.arange(0, dim // 2, 2, device=device) / (dim // 2))

    def encode(length: int) -> Tensor:
        angles = torch.arange(1, length + 1, device=device)[:, None] * (2 * math.pi / length) * rates
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).T  # (dim / 2, length)

    rows = encode(height)[:, :, None].expand(-1, -1, width)
    columns = encode(width)[:, None].expand(-1, height, -1)
    return torch.cat([rows, columns])

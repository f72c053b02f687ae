"""MCANet's head: rows attend to rows and columns to columns, with queries that come from the other axis's strips.

Paper: MCANet: Medical Image Segmentation with Multi-Scale Cross-Axis Attention (Shao et al., 2023), arXiv:2312.08866
    A = proj(sum_k conv_1xk(LN(x))),  B = proj(sum_k conv_kx1(LN(x))),  k = 7, 11, 21, depthwise
    rows:    out_1 = softmax(q k^T) v + q,  q = norm(rows of B),     k = norm(rows of A),     v = rows of A
    columns: out_2 = softmax(q k^T) v + q,  q = norm(columns of A),  k = norm(columns of B),  v = columns of B
    MCA(x) = proj(out_1) + proj(out_2) + x
A row is a token of W * c numbers, per head of c channels; norm is L2; nothing is divided by sqrt(W * c). One and the
same 1x1 convolution `proj` stands in all four places.
    y = MCA(squeeze(concat(E2, E3, E4))),  logits = classify(align(separable(separable(concat(y, E1)))))
Cost: O(H W (H + W) dim) time.
The normalised query is added as in the release. Departs from it: maps meet at the finest map's size instead of at
128x128; its temperature, a parameter that no output depends on, is left out (num_heads numbers less); heads and
groups of the norms become fewer where they do not fit the width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vantage.tasks.segmentation.decoders.layers import ConvNormAct, choose_levels, classifier, group_norm
from vantage.tasks.segmentation.resize import Resize


class MultiScaleCrossAxis(nn.Module):
    """MCA above: x (B, dim, H, W) -> (B, dim, H, W), any H and W."""

    kernel_sizes = (7, 11, 21)

    def __init__(self, dim: int, num_heads: int = 8):
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"multi-scale cross-axis attention: {num_heads} heads do not divide {dim} channels; use num_heads="
                f"{math.gcd(num_heads, dim)}"
            )
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.horizontal = nn.ModuleList(
            nn.Conv2d(dim, dim, (1, size), padding=(0, size // 2), groups=dim) for size in self.kernel_sizes
        )
        self.vertical = nn.ModuleList(
            nn.Conv2d(dim, dim, (size, 1), padding=(size // 2, 0), groups=dim) for size in self.kernel_sizes
        )
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        across = self.proj(sum(strip(normed) for strip in self.horizontal))
        down = self.proj(sum(strip(normed) for strip in self.vertical))
        rows = self.attend_rows(down, across)
        columns = self.attend_rows(across.mT, down.mT).mT
        return self.proj(rows) + self.proj(columns) + x

    def attend_rows(self, queries: Tensor, values: Tensor) -> Tensor:
        """Maps (B, dim, H, W) -> (B, dim, H, W): keys are the values' rows."""
        batch, dim, height, width = values.shape
        queries, values = (
            one.unflatten(1, (self.num_heads, -1)).transpose(2, 3).flatten(3) for one in (queries, values)
        )  # (B, heads, H, c * W)
        out = cross_axis(queries, values, values)
        return out.unflatten(3, (-1, width)).transpose(2, 3).reshape(batch, dim, height, width)


def cross_axis(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k^T) values + q with q, k the L2-normalised queries and keys; all (B, heads, N, features)."""
    queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
    return F.scaled_dot_product_attention(queries, keys, values, scale=1.0) + queries


class MCANet(nn.Module):
    """forward(maps of the backbone) -> logits (B, num_classes, h, w) at the size of the finest map used.

    num_heads      of the attention over the second map's width; where they do not divide it, their greatest common
                   divisor
    dropout        before the classifier
    finest_stride  of the backbone's maps that are used, unless all are finer

    The finest map is E1, all others together take the place of E2 to E4; a single map is both.
    """

    def __init__(
        self,
        channels: Sequence[int],
        backbone_strides: Sequence[int],
        *,
        num_classes: int,
        num_heads: int = 8,
        dropout: float = 0.1,
        finest_stride: int = 4,
    ):
        super().__init__()
        self.levels = choose_levels(backbone_strides, finest_stride)
        widths = [channels[index] for index in self.levels]
        coarser = widths[1:] or widths
        self.squeeze = ConvNormAct(sum(coarser), coarser[0], 1, norm=group_norm)
        self.attention = MultiScaleCrossAxis(coarser[0], math.gcd(num_heads, coarser[0]))
        self.merge = nn.Sequential(separable(coarser[0] + widths[0], widths[-1]), separable(widths[-1], widths[-1]))
        self.align = ConvNormAct(widths[-1], widths[0], 1, norm=group_norm)
        self.classifier = classifier(widths[0], num_classes, dropout)
        self.resize = Resize()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        finest, *coarser = [maps[index] for index in self.levels]
        context = torch.cat([self.resize(one, finest.shape[-2:]) for one in coarser or [finest]], 1)
        attended = self.attention(self.squeeze(context))
        return self.classifier(self.align(self.merge(torch.cat([attended, finest], 1))))


def separable(in_chans: int, out_chans: int) -> nn.Sequential:
    """Depthwise 3x3 and 1x1 convolution, each with group norm and ReLU."""
    return nn.Sequential(
        ConvNormAct(in_chans, in_chans, 3, groups=in_chans, norm=group_norm),
        ConvNormAct(in_chans, out_chans, 1, norm=group_norm),
    )

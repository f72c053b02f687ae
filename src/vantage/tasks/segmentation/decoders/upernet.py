"""UPerNet: pyramid pooling on the last map, a feature pyramid below it, all levels fused at the finest.

Paper: Unified Perceptual Parsing for Scene Understanding (Xiao et al., 2018), arXiv:1807.10221
    M_n = conv3x3([C_n, up(conv1x1(pool_b(C_n))) for the bins b])       (PSPNet's pooling, arXiv:1612.01105)
    M_i = conv1x1(C_i) + up(M_{i+1}),   P_i = conv3x3(M_i), P_n = M_n
    logits = W dropout(conv3x3([P_1, up(P_2) ... up(P_n)]))
every convolution with batch norm and ReLU. Departs from it in the branch of a single bin: see `PyramidPooling`.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from vantage.tasks.segmentation.decoders.layers import BatchNorm, ConvNormAct, choose_levels, classifier
from vantage.tasks.segmentation.resize import Resize


class PyramidPooling(nn.Module):
    """(B, in_chans, H, W) -> (B, width, H, W): averages over b x b bins of the map beside the map itself.

    A bin of the whole map leaves one value per channel and picture. Batch norm over so few is no statistic: one picture
    per process has no variance at all, of two only the sign is left. That branch has a norm over the picture's
    own channels instead, with as many parameters. Bins finer than the map's cells repeat cells.
    """

    def __init__(self, in_chans: int, width: int, bins: Sequence[int]):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size),
                ConvNormAct(in_chans, width, 1, norm=BatchNorm if size > 1 else partial(nn.GroupNorm, 1)),
            )
            for size in bins
        )
        self.fuse = ConvNormAct(in_chans + len(bins) * width, width)
        self.resize = Resize()

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.resize(branch(x), x.shape[-2:]) for branch in self.branches]
        return self.fuse(torch.cat([x, *pooled], 1))


class UPerNet(nn.Module):
    """forward(maps of the backbone, finest first) -> logits (B, num_classes, h, w) at the finest stride used.

    width          channels of everything between the backbone and the classifier
    bins           of the pyramid pooling: each averages the last map over as many rows and columns of bins
    finest_stride  maps finer than this are left out, unless all are
    """

    def __init__(
        self,
        channels: Sequence[int],
        backbone_strides: Sequence[int],
        *,
        num_classes: int,
        width: int = 512,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        finest_stride: int = 4,
    ):
        super().__init__()
        self.levels = choose_levels(backbone_strides, finest_stride)
        *finer, last = self.levels
        self.pooling = PyramidPooling(channels[last], width, bins)
        self.laterals = nn.ModuleList(ConvNormAct(channels[level], width, 1) for level in finer)
        self.outputs = nn.ModuleList(ConvNormAct(width, width) for _ in finer)
        self.fuse = ConvNormAct(len(self.levels) * width, width)
        self.classifier = classifier(width, num_classes, dropout)
        self.resize = Resize()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, last = (maps[level] for level in self.levels)
        merged = [lateral(one) for lateral, one in zip(self.laterals, finer)] + [self.pooling(last)]
        size = merged[0].shape[-2:]
        for fine in range(len(finer) - 1, -1, -1):
            merged[fine] = merged[fine] + self.resize(merged[fine + 1], merged[fine].shape[-2:])
        for index, output in enumerate(self.outputs):
            merged[index] = output(merged[index])
        fused = self.fuse(torch.cat([self.resize(one, size) for one in merged], 1))
        return self.classifier(fused)

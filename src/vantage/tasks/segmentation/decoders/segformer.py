"""SegFormer's all-MLP decoder: every level to one width, resized to the finest, fused by a 1x1 convolution.

Paper: SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers (Xie et al., 2021),
arXiv:2105.15203
    logits = W dropout(ReLU(BN(F [up(L_1 C_1 + b_1) ... up(L_n C_n + b_n)])))
Computed as sum_i up(F_i (L_i C_i + b_i)), F = [F_1 ... F_n]: a 1x1 convolution mixes channels and bilinear resizing
mixes pixels with weights of sum 1, so they commute. The same function of the same parameters, but only F_1 works at
the finest resolution, and the concatenation is never stored.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vantage.tasks.segmentation.decoders.layers import BatchNorm, choose_levels, classifier
from vantage.tasks.segmentation.resize import Resize


class SegFormer(nn.Module):
    """forward(maps of the backbone, finest first) -> logits (B, num_classes, h, w) at the finest stride used.

    width          channels of every level: 256 as released with MiT-B0 and B1, 768 with the larger ones
    finest_stride  maps finer than this are left out, unless all are
    """

    def __init__(
        self,
        channels: Sequence[int],
        backbone_strides: Sequence[int],
        *,
        num_classes: int,
        width: int = 256,
        dropout: float = 0.1,
        finest_stride: int = 4,
    ):
        super().__init__()
        self.levels = choose_levels(backbone_strides, finest_stride)
        self.linears = nn.ModuleList(nn.Conv2d(channels[level], width, 1) for level in self.levels)
        self.fuse = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in self.levels)
        self.norm = BatchNorm(width)
        self.act = nn.ReLU(inplace=True)
        self.classifier = classifier(width, num_classes, dropout)
        self.resize = Resize()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[self.levels[0]].shape[-2:]
        parts = [
            self.resize(fuse(linear(maps[level])), size)
            for level, linear, fuse in zip(self.levels, self.linears, self.fuse)
        ]
        return self.classifier(self.act(self.norm(sum(parts[1:], parts[0]))))

"""Fully convolutional head: a few convolutions on one map of the backbone.

Paper: Fully Convolutional Networks for Semantic Segmentation (Long et al., 2015), arXiv:1411.4038
    y = convs(x),  logits = W dropout(y)            or, with concat_input, W dropout(conv3x3([x, y]))
In the form used as a head over later backbones: 3x3 convolutions with norm and ReLU on the last map, no sum with the
classes that finer maps predict (the paper's FCN-16s and FCN-8s).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vantage.tasks.segmentation.decoders.layers import ConvNormAct, choose_levels, classifier


class FCN(nn.Module):
    """forward(maps of the backbone, finest first) -> logits (B, num_classes, h, w) at the stride of its map.

    level         the map, counted over those of different stride: -1 is the coarsest, -2 the next finer one
    width         channels of the `num_convs` 3x3 convolutions
    concat_input  whether the map itself is concatenated to their output, for one more convolution
    """

    def __init__(
        self,
        channels: Sequence[int],
        backbone_strides: Sequence[int],
        *,
        num_classes: int,
        level: int = -1,
        width: int = 512,
        num_convs: int = 2,
        concat_input: bool = True,
        dropout: float = 0.1,
    ):
        super().__init__()
        levels = choose_levels(backbone_strides)
        if not -len(levels) <= level < len(levels):
            raise ValueError(
                f"level is {level} but the backbone's strides {list(backbone_strides)} give {len(levels)} level(s); "
                f"use {-len(levels)} to {len(levels) - 1}"
            )
        if num_convs < 1:
            raise ValueError(f"num_convs is {num_convs}; use 1 or more")
        self.level = levels[level]
        in_chans = channels[self.level]
        self.convs = nn.Sequential(*(ConvNormAct(width if index else in_chans, width) for index in range(num_convs)))
        self.fuse = ConvNormAct(in_chans + width, width) if concat_input else None
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = maps[self.level]
        y = self.convs(x)
        if self.fuse is not None:
            y = self.fuse(torch.cat([x, y], 1))
        return self.classifier(y)

"""Auxiliary head: a small FCN on an inner map, whose loss trains the backbone from nearer by (Zhao 2017, 1612.01105).

Only training needs it; its logits are no part of a prediction.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vantage.tasks.segmentation.decoders.fcn import FCN
from vantage.tasks.segmentation.decoders.layers import choose_levels


class AuxiliaryHead(nn.Module):
    """forward(maps of the backbone, finest first) -> logits (B, num_classes, h, w) at the stride of its map.

    level  as in FCN: -2 is the last map but one (stride 16 of 4 to 32), the published choice. A level beyond the
           backbone's becomes the nearest one it has, so that the default fits a plain ViT with its single map.
    width  channels of the `num_convs` 3x3 convolutions
    """

    def __init__(
        self,
        channels: Sequence[int],
        backbone_strides: Sequence[int],
        *,
        num_classes: int,
        level: int = -2,
        width: int = 256,
        num_convs: int = 1,
        dropout: float = 0.1,
    ):
        super().__init__()
        num_levels = len(choose_levels(backbone_strides))
        self.fcn = FCN(
            channels,
            backbone_strides,
            num_classes=num_classes,
            level=max(-num_levels, min(level, num_levels - 1)),
            width=width,
            num_convs=num_convs,
            concat_input=False,
            dropout=dropout,
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.fcn(maps)

"""U-Net's expanding path over any backbone: upsample, concatenate the map of that resolution, two convolutions.

Paper: U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015), arXiv:1505.04597
    x_i = conv3x3(conv3x3([up(x_{i-1}), C_i])),  x_0 the coarsest map,  logits = W x_n
every 3x3 convolution with batch norm and ReLU. Departs from it as segmentation_models_pytorch does: padded convolutions
instead of cropped skips, widths of the steps apart from the backbone's, steps without a skip where the backbone has no
map that fine. Upsampling is bilinear instead of a 2x2 transposed convolution.
"""

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor, nn

from vantage.tasks.segmentation.decoders.layers import ConvNormAct, choose_levels, classifier
from vantage.tasks.segmentation.resize import Resize


class UNet(nn.Module):
    """forward(maps of the backbone, finest first) -> logits (B, num_classes, h, w) at stride `to_stride`.

    widths     channels of the steps, coarsest first. A backbone that needs fewer steps takes the last ones, so that
               the costly steps at fine resolution have the same width over every backbone.
    to_stride  of the logits: maps finer than this are left out (unless all are), and steps without a skip go on from
               the finest map to it, doubling each time; from a stride that is no power of two as near as doubling
               comes without passing it
    """

    def __init__(
        self,
        channels: Sequence[int],
        backbone_strides: Sequence[int],
        *,
        num_classes: int,
        widths: Sequence[int] = (256, 128, 64, 32, 16),
        to_stride: int = 1,
        dropout: float = 0.0,
    ):
        super().__init__()
        if to_stride < 1:
            raise ValueError(f"to_stride is {to_stride}; use 1, the picture's own resolution, or more")
        coarsest, *skips = reversed(choose_levels(backbone_strides, to_stride))
        self.levels = [coarsest, *skips]
        finest_stride = backbone_strides[self.levels[-1]]
        num_doublings = max(0, (finest_stride // to_stride).bit_length() - 1)
        num_steps = len(skips) + num_doublings
        if num_steps > len(widths):
            raise ValueError(
                f"widths {list(widths)} are {len(widths)}, but from strides {list(backbone_strides)} to "
                f"to_stride={to_stride} there are {num_steps} steps; give {num_steps} widths or a coarser to_stride"
            )
        widths = list(widths)[len(widths) - num_steps :]
        skip_channels = [channels[level] for level in skips]
        self.steps = nn.ModuleList()
        in_chans = channels[coarsest]
        for width, skip in zip_longest(widths, skip_channels, fillvalue=0):
            self.steps.append(nn.Sequential(ConvNormAct(in_chans + skip, width), ConvNormAct(width, width)))
            in_chans = width
        self.classifier = classifier(in_chans, num_classes, dropout)
        self.resize = Resize()

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        coarsest, *skips = (maps[level] for level in self.levels)
        x = coarsest
        for step, skip in zip_longest(self.steps, skips):
            if skip is None:
                x = self.resize(x, [2 * side for side in x.shape[-2:]])
            else:
                x = torch.cat([self.resize(x, skip.shape[-2:]), skip], 1)
            x = step(x)
        return self.classifier(x)

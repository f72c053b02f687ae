"""What the decoders are made of: convolution blocks, norms, the classifier, and which maps of a backbone to use."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that also trains on one value per channel: batch 1 and a map of 1x1.

    The variance of one value is zero: where nn.BatchNorm2d raises, the running statistics normalise, unchanged.
    """

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        if self.training and batch * height * width == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def group_norm(width: int) -> nn.GroupNorm:
    """32 groups as published, fewer where a group would have less than four channels (those of 128) to normalise."""
    return nn.GroupNorm(math.gcd(32, width, width // 4), width)


class ConvNormAct(nn.Module):
    """(B, in_chans, H, W) -> (B, out_chans, ceil(H / stride), ceil(W / stride)): convolution (odd kernel), norm, ReLU.

    norm  callable (channels) -> module
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: Callable[[int], nn.Module] = BatchNorm,
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            in_chans,
            out_chans,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        self.norm = norm(out_chans)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class SeparableConvNormAct(nn.Sequential):
    """A depthwise and a 1x1 convolution, each with norm and ReLU (Chollet, 2017, arXiv:1610.02357)."""

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int = 3):
        super().__init__(
            ConvNormAct(in_chans, in_chans, kernel_size, groups=in_chans),
            ConvNormAct(in_chans, out_chans, 1),
        )


def classifier(width: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Dropout of whole channels, as neighbouring pixels tell each other's values, and a 1x1 convolution.

    Its weights start as torch draws them: the usual normal(0, 0.01) passes so little gradient on to a narrow decoder
    that a small run ends before it has begun.
    """
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, num_classes, 1))


def choose_levels(backbone_strides: Sequence[int], finest_stride: int = 1) -> list[int]:
    """Indices of the maps that a decoder uses, finest first.

    Of maps with equal stride the last one; none finer than `finest_stride`, unless all of them are.
    """
    levels = list({stride: index for index, stride in enumerate(backbone_strides)}.values())
    return [index for index in levels if backbone_strides[index] >= finest_stride] or levels

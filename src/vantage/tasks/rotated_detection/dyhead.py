"""Dynamic Head: blocks after a pyramid that attend over its levels, over places and over channels.

Paper: Dynamic Head: Unifying Object Detection Heads with Attentions (Dai et al., 2021), arXiv:2106.08322
    offsets, masks = conv3x3(P_l)                            18 numbers, and 9 through a sigmoid, per place
    M_k = norm(deform3x3_k(P_k; offsets, masks))             k: the finer level (stride 2), l itself, the coarser one
    Q_l = mean_k hardsigmoid(relu(w . mean_places(M_k))) M_k
    P'_l = max(a1 Q_l + b1, a2 Q_l + b2)                     DyReLU: numbers per channel from mean_places(Q_l)
Cost per block: about 2 * 27 * C^2 + 2 * 9 * 27 * C per place of a level.

As its release does, the coarser level is convolved at its own size and the result upsampled. The release's kernel then
reads the own level's offsets as if they were of the coarser size; here they are resized to it. Departs from it too in
upsampling with cells kept in their places (align_corners=False).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

TAPS = 9


class DyReLU(nn.Module):
    """y = max(a1 x + b1, a2 x + b2), the four numbers per channel from the map's mean; at the start nearly ReLU.

    Paper: Dynamic ReLU (Chen et al., 2020), arXiv:2003.10027: a1 in [0, 2], a2 in [-1, 1], b1 and b2 in [-1/2, 1/2].
    """

    def __init__(self, width: int, *, reduction: int = 4):
        super().__init__()
        hidden = max(1, width // reduction)
        self.numbers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, 4 * width), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.numbers(x.mean((2, 3)))[:, :, None, None] - 0.5
        a1, b1, a2, b2 = numbers.chunk(4, 1)  # (B, C, 1, 1)
        return torch.maximum((2 * a1 + 1) * x + b1, 2 * a2 * x + b2)


class DeformNorm(nn.Module):
    """Modulated deformable 3x3 convolution and group norm of 16 groups (fewer where 16 does not divide the width)."""

    def __init__(self, width: int, stride: int = 1):
        super().__init__()
        self.conv = DeformConv2d(width, width, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(math.gcd(16, width), width)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor, offsets: Tensor, masks: Tensor) -> Tensor:
        size = [-(-side // self.conv.stride[0]) for side in x.shape[-2:]]
        return self.norm(self.conv(x, resized(offsets, size), resized(masks, size)))


class DynamicHeadBlock(nn.Module):
    """Levels (B, width, H_l, W_l), finest first -> the same shapes."""

    def __init__(self, width: int, *, num_levels: int):
        super().__init__()
        self.offsets = nn.Conv2d(width, 3 * TAPS, 3, padding=1)
        self.own = DeformNorm(width)
        # a single level has no neighbours, and what is never used would stop distributed training
        self.finer = DeformNorm(width, stride=2) if num_levels > 1 else None
        self.coarser = DeformNorm(width) if num_levels > 1 else None
        self.to_weight = nn.Linear(width, 1)
        self.activation = DyReLU(width)
        nn.init.normal_(self.to_weight.weight, std=0.01)
        nn.init.zeros_(self.to_weight.bias)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        with torch.autocast(levels[0].device.type, enabled=False):  # the deformable convolution wants one dtype
            levels = [level.float() for level in levels]
            return [self.mixed(levels, number) for number in range(len(levels))]

    def mixed(self, levels: Sequence[Tensor], number: int) -> Tensor:
        level = levels[number]
        offsets, masks = self.offsets(level).split([2 * TAPS, TAPS], 1)
        masks = masks.sigmoid()
        branches = [self.own(level, offsets, masks)]
        if number > 0:
            branches.append(self.finer(levels[number - 1], offsets, masks))
        if number + 1 < len(levels):
            branches.append(resized(self.coarser(levels[number + 1], offsets, masks), level.shape[-2:]))
        weighed = [F.hardsigmoid(self.to_weight(one.mean((2, 3))).relu())[:, :, None, None] * one for one in branches]
        return self.activation(sum(weighed) / len(weighed))


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return x if list(x.shape[-2:]) == list(size) else F.interpolate(x, size=tuple(size), mode="bilinear")

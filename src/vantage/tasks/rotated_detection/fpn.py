"""Feature pyramid over the maps of any backbone.

Paper: Feature Pyramid Networks for Object Detection (Lin et al., 2017), arXiv:1612.03144
    M_s = lateral(C_s) + nearest(M_2s),  P_s = conv3x3(M_s)
Levels coarser than the backbone's last map come by convolutions of stride 2 (RetinaNet's P6, P7), levels finer than
its first by nearest upsampling and a convolution (the stride-4 level of a plain ViT). Blocks of Dynamic Head may
follow.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from vantage.tasks.rotated_detection.dyhead import DynamicHeadBlock


class FPN(nn.Module):
    """forward(maps of the backbone) -> maps (B, out_channels, ceil(H / s), ceil(W / s)), one per stride s of `strides`.

    channels, backbone_strides   of the backbone's maps; of maps with equal stride the last one is used
    strides                      of the levels, finest first, each twice the one before; maps of the backbone that are
                                 coarser than the last level take part, finer than the first do not
    extra_from                   what the first level beyond the backbone is computed from: the backbone's last map
                                 ("backbone", RetinaNet), the last level before it ("level", FCOS), or that level
                                 subsampled without a convolution ("pool", Faster R-CNN)
    dyhead_blocks                blocks of Dynamic Head over the levels; 0 is a plain FPN

    A level finer than the backbone's maps is twice the size of the next one: one row or column more where that was
    rounded up.
    """

    def __init__(
        self,
        channels: Sequence[int],
        backbone_strides: Sequence[int],
        *,
        strides: Sequence[int],
        out_channels: int = 256,
        extra_from: Literal["backbone", "level", "pool"] = "level",
        dyhead_blocks: int = 0,
    ):
        super().__init__()
        strides = list(strides)
        if not strides or any(fine * 2 != coarse for fine, coarse in pairwise(strides)):
            raise ValueError(f"detector strides {strides} are not each twice the one before; use e.g. [4, 8, 16, 32]")
        source = {stride: index for index, stride in enumerate(backbone_strides) if stride >= strides[0]}
        if not set(strides) & set(source):
            raise ValueError(
                f"detector strides {strides} are none of the backbone's {sorted(set(backbone_strides))}; let them "
                f"contain {backbone_strides[-1]}"
            )
        self.strides = strides
        self.out_channels = out_channels
        self.extra_from = extra_from
        self.sources = list(source.values())
        self.num_finer = strides.index(min(source))
        self.num_coarser = sum(stride > max(source) for stride in strides)
        self.laterals = nn.ModuleList(nn.Conv2d(channels[index], out_channels, 1) for index in self.sources)
        self.outputs = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in range(len(strides) - self.num_coarser)
        )
        first_in = channels[self.sources[-1]] if extra_from == "backbone" else out_channels
        self.extras = nn.ModuleList(
            nn.Conv2d(out_channels if index else first_in, out_channels, 3, stride=2, padding=1)
            for index in range(self.num_coarser if extra_from != "pool" else 0)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # after the loop: they have their own initial weights
        self.blocks = nn.Sequential(
            *(DynamicHeadBlock(out_channels, num_levels=len(strides)) for _ in range(dyhead_blocks))
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        maps = [maps[index] for index in self.sources]
        merged = [lateral(one) for lateral, one in zip(self.laterals, maps)]
        for fine in range(len(merged) - 2, -1, -1):
            merged[fine] = merged[fine] + F.interpolate(merged[fine + 1], size=merged[fine].shape[-2:])
        for _ in range(self.num_finer):
            merged.insert(0, F.interpolate(merged[0], scale_factor=2.0))
        levels = [output(one) for output, one in zip(self.outputs, merged)]
        coarse = maps[-1] if self.extra_from == "backbone" else levels[-1]
        for index in range(self.num_coarser):
            if self.extra_from == "pool":
                coarse = coarse[..., ::2, ::2]
            else:
                coarse = self.extras[index](F.relu(coarse) if index else coarse)
            levels.append(coarse)
        return self.blocks(levels)

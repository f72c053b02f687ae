"""Maps of a hierarchical backbone -> the enlarged picture, so that any backbone can be tried.

    f = sum_i up(conv1x1(C_i)) at the finest of the maps' strides s
    x = shuffle_s(conv3x3(f)) + conv3x3(lr),        at the picture's own size
    sr = shuffle_scale(conv3x3(GELU(conv3x3(GELU(x))))) + bicubic(lr)
Not a published head: a pyramid's sum and sub-pixel upsampling (Shi et al., 2016, arXiv:1609.05158) on a bicubic
residual. What the backbone's stem throws away comes back only through conv3x3(lr): a trunk at stride 1 (sr_trunk) is
the better choice where the picture is all that counts.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from vantage.backbones.sr.upsample import shuffle_once
from vantage.ops.resize import resize


class UpsamplingHead(nn.Module):
    """forward(lr (B, in_chans, h, w), maps of it, finest first) -> (B, in_chans, scale h, scale w)"""

    def __init__(
        self,
        channels: Sequence[int],
        backbone_strides: Sequence[int],
        *,
        scale: int,
        in_chans: int,
        width: int = 64,
    ):
        super().__init__()
        self.scale, self.stride = scale, backbone_strides[0]
        self.laterals = nn.ModuleList(nn.Conv2d(chans, width, 1) for chans in channels)
        self.to_pixels = nn.Conv2d(width, width * self.stride**2, 3, padding=1)
        self.shallow = nn.Conv2d(in_chans, width, 3, padding=1)
        self.refine = nn.Conv2d(width, width, 3, padding=1)
        self.upsample = shuffle_once(scale, width, in_chans)
        nn.init.zeros_(self.upsample[0].weight)  # an untrained network is bicubic
        nn.init.zeros_(self.upsample[0].bias)

    def forward(self, x: Tensor, maps: Sequence[Tensor]) -> Tensor:
        height, width = x.shape[-2:]
        finest = maps[0].shape[-2:]
        merged = [lateral(one) for lateral, one in zip(self.laterals, maps)]
        merged = [
            one if one.shape[-2:] == finest else F.interpolate(one, finest, mode="bilinear", align_corners=False)
            for one in merged
        ]
        pixels = F.pixel_shuffle(self.to_pixels(sum(merged[1:], merged[0])), self.stride)
        deep = F.gelu(pixels[..., :height, :width] + self.shallow(x))  # maps cover the picture, rounded up
        return self.upsample(F.gelu(self.refine(deep))) + resize(x, self.scale)

"""HAN: RCAN's groups of channel-attended residual blocks, whose maps attention over layers and over places fuses.

Paper: Single Image Super-Resolution via a Holistic Attention Network (Niu et al., 2020), arXiv:2008.08767
    x_0 = conv(r lr),  x_g = group_g(x_{g-1}),  x_{G+1} = conv(x_G)
    group(x) = x + conv(block_n(... block_1(x))),  block(x) = x + CA(conv(ReLU(conv(x))))
    CA(y) = y sigmoid(conv1x1(ReLU(conv1x1(mean of y's pixels))))           (Zhang et al., 2018, arXiv:1807.02758)
    deep = conv([CSAM(x_{G+1}), conv(LAM(x_{G+1}, ..., x_1))])              newest first, as in the release
    sr = conv(shuffle(x_0 + deep)) / r
Every other convolution is 3x3 with a bias; r is `img_range`. LAM: layer_attention.py, CSAM: plugs/csam.py.
Cost: 18 dim^2 multiply-adds per pixel and block, 9 dim^2 per group, 9 (G + 1) dim^2 for LAM's convolution; all G + 1
maps are kept. CA's means and LAM's weights are over all that the network is given: a tile is not cut from the whole.
Parameter names and shapes are the release's (wwlCape/HAN). It counts 16,071,769 of them at x4, 24 of which are the
mean colour in two fixed convolutions: here 16,071,745, and the data's normalisation.
CSAM's kernel and bias get gradients that are zero, not None, as long as its gamma is 0, which it is at the start.
"""

import torch
from torch import Tensor, nn

from vantage.backbones.slots import Slot
from vantage.backbones.sr.edsr import drop_mean_shift
from vantage.backbones.sr.layer_attention import LayerAttention
from vantage.backbones.sr.upsample import shuffle_steps
from vantage.plugs.csam import CSAM

VARIANTS = {
    "han": {},
    "han_scaled": {"lam_scaled": True},
}


class HAN(nn.Module):
    def __init__(
        self,
        *,
        scale: int,
        in_chans: int = 3,
        dim: int = 64,
        num_groups: int = 10,
        num_blocks: int = 20,
        reduction: int = 16,
        lam_scaled: bool = False,
        img_range: float = 255.0,
    ):
        """num_blocks: of each group; reduction: dim over the hidden channels of channel attention.

        lam_scaled: layer attention from mean products, which do not grow with the picture.
        img_range: the convolutions see pixels times this, which the release's weights expect.
        """
        super().__init__()
        if dim < reduction:
            raise ValueError(f"han: dim {dim} leaves channel attention no channel at reduction {reduction}; lower it")
        self.img_range = img_range
        self.head = nn.Sequential(nn.Conv2d(in_chans, dim, 3, padding=1))
        groups = (Group(dim, num_blocks, reduction) for _ in range(num_groups))
        self.body = nn.Sequential(*groups, nn.Conv2d(dim, dim, 3, padding=1))
        self.csa = CSAM()
        self.la = LayerAttention(scaled=lam_scaled)
        self.last_conv = nn.Conv2d((num_groups + 1) * dim, dim, 3, padding=1)
        self.last = nn.Conv2d(2 * dim, dim, 3, padding=1)
        self.tail = nn.Sequential(shuffle_steps(scale, dim), nn.Conv2d(dim, in_chans, 3, padding=1))
        self.register_load_state_dict_pre_hook(drop_mean_shift)

    def forward(self, x: Tensor) -> Tensor:
        shallow = current = self.head(x * self.img_range)
        maps: list[Tensor] = []
        for stage in self.body:
            current = stage(current)
            maps.append(current)
        layers = self.la(torch.stack(maps[::-1], 1))  # (B, G + 1, dim, h, w)
        deep = self.last(torch.cat((self.csa(current), self.last_conv(layers.flatten(1, 2))), 1))
        return self.tail(shallow + deep) / self.img_range

    def slots(self) -> list[Slot]:
        return []


class Group(nn.Module):
    def __init__(self, dim: int, num_blocks: int, reduction: int):
        super().__init__()
        blocks = (Block(dim, reduction) for _ in range(num_blocks))
        self.body = nn.Sequential(*blocks, nn.Conv2d(dim, dim, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Block(nn.Module):
    def __init__(self, dim: int, reduction: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            ChannelAttention(dim, reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ChannelAttention(nn.Module):
    def __init__(self, dim: int, reduction: int):
        super().__init__()
        hidden = dim // reduction
        self.conv_du = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, dim, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_du(x.mean((2, 3), keepdim=True))

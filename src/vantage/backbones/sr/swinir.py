"""SwinIR: residual groups of Swin blocks at the small picture's own size, then sub-pixel upsampling.

Paper: SwinIR: Image Restoration Using Swin Transformer (Liang et al., 2021), arXiv:2108.10257
    x_0 = conv3x3(lr)
    block(x) = y + MLP(LN(y)),  y = x + window_attention(LN(x))      windows of 8, in odd blocks shifted by 4
    RSTB(x) = x + conv3x3(block_n(... block_1(x)))
    deep = x_0 + conv3x3(LN(RSTB_m(... RSTB_1(LN(x_0)))))
    sr = shuffle(conv3x3(deep))                                      pixelshuffledirect: the light network
    sr = conv3x3(shuffle_steps(LeakyReLU(conv3x3(deep))))            pixelshuffle, 64 channels: the classical one
Cost per pixel of lr and block: 8 dim^2 (projections) + 4 window_size^2 dim + 4 mlp_ratio dim^2, multiply-adds twice.
Memory O(N dim), and O(N heads window_size^2) for the biases of shifted windows.

Names and shapes are the release's (JingyunLiang/SwinIR), whose state_dict loads with strict=True: its masks and indices
depend on sizes alone and are dropped, its tables become `position.table` (swinir_window.py).
Learnable parameters (buffers not counted) at x2, x3, x4: light 910,152, 918,267, 929,628; classical 11,752,487,
11,937,127, 11,900,199. The 878K, 886K and 897K of the light network in the paper are without the tables, 1,350 a block.

Departs from the release:
- The RGB mean is the data's normalisation and no part of the network; 8-bit restoration's img_range has no use here.
- lr is completed to whole windows by reflection as there. A side too short for one reflection (1 to 4 pixels with
  windows of 8) raises there; here it is reflected to and fro. Its test script pads before the network does, by 1 to 8
  pixels that mirror the picture with its border, also where windows divide it: it measures such pictures.
- drop_path is 0 and must be asked for; the release's class has 0.1 unless told otherwise.
Real-world SR (nearest + conv), denoising and JPEG networks are left out.
"""

from collections import OrderedDict
from typing import Literal

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vantage.backbones.slots import Slot
from vantage.backbones.sr.swinir_window import SwinIRWindow
from vantage.backbones.sr.upsample import check_scale, shuffle_once, shuffle_steps
from vantage.ops.constants import cached_constant

VARIANTS = {
    "swinir_light": {"dim": 60, "depths": (6, 6, 6, 6), "upsampler": "pixelshuffledirect"},
    "swinir": {"dim": 180, "depths": (6, 6, 6, 6, 6, 6), "upsampler": "pixelshuffle"},
}

UPSAMPLE_CHANS = 64  # of the classical upsampler, whatever dim is


class SwinIR(nn.Module):
    def __init__(
        self,
        *,
        scale: int,
        in_chans: int = 3,
        dim: int = 180,
        num_heads: int = 6,
        depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6),
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        upsampler: Literal["pixelshuffle", "pixelshuffledirect"] = "pixelshuffle",
        drop_path: float = 0.0,
    ):
        """depths: blocks of each group. drop_path: rate of the last block, growing linearly from 0 at the first."""
        super().__init__()
        self.scale = check_scale(scale)
        self.num_heads = num_heads
        self.window_size = window_size
        self.conv_first = nn.Conv2d(in_chans, dim, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=nn.LayerNorm(dim)))
        last = max(sum(depths) - 1, 1)
        rates = iter([drop_path * index / last for index in range(sum(depths))])
        self.layers = nn.Sequential()
        for depth in depths:
            blocks = [
                Block(dim, num_heads, window_size, mlp_ratio, is_shifted=index % 2 == 1, drop_path=next(rates))
                for index in range(depth)
            ]
            self.layers.append(RSTB(dim, blocks))
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv_before_upsample: nn.Module = nn.Identity()
        self.conv_last: nn.Module = nn.Identity()
        if upsampler == "pixelshuffledirect":
            self.upsample = shuffle_once(scale, dim, in_chans)
        elif upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, UPSAMPLE_CHANS, 3, padding=1), nn.LeakyReLU())
            self.upsample = shuffle_steps(scale, UPSAMPLE_CHANS)
            self.conv_last = nn.Conv2d(UPSAMPLE_CHANS, in_chans, 3, padding=1)
        else:
            raise ValueError(f"swinir: upsampler={upsampler!r}; use pixelshuffle or pixelshuffledirect")
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        shallow = self.conv_first(whole_windows(x, self.window_size))  # (B, dim, H, W)
        tokens = self.layers(self.patch_embed(shallow.permute(0, 2, 3, 1)))
        deep = shallow + self.conv_after_body(self.norm(tokens).permute(0, 3, 1, 2))
        sr = self.conv_last(self.upsample(self.conv_before_upsample(deep)))
        return sr[..., : self.scale * height, : self.scale * width]

    def slots(self) -> list[Slot]:
        return [
            Slot(
                name=f"layers.{stage}.residual_group.blocks.{index}.attn",
                role="local",
                stage=stage,
                dim=self.conv_first.out_channels,
                num_heads=self.num_heads,
                stride=1,
                shifted=index % 2 == 1,
            )
            for stage, layer in enumerate(self.layers)
            for index in range(len(layer.residual_group.blocks))
        ]


class RSTB(nn.Module):
    """(B, H, W, dim) -> the same: blocks, a convolution and a residual around both."""

    def __init__(self, dim: int, blocks: list[nn.Module]):
        super().__init__()
        self.residual_group = nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks)))
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.residual_group(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """(B, H, W, dim) -> the same: a token mixer and an MLP, each behind a LayerNorm and with a residual."""

    def __init__(
        self, dim: int, num_heads: int, window_size: int, mlp_ratio: float, *, is_shifted: bool, drop_path: float
    ):
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attn: nn.Module = SwinIRWindow(dim, num_heads, window_size=window_size, is_shifted=is_shifted)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(dim, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, dim)),
        )
        self.register_load_state_dict_pre_hook(drop_mask)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def drop_mask(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: the release's shifted blocks have a buffer that follows from the size they were built for."""
    state_dict.pop(f"{prefix}attn_mask", None)


def whole_windows(x: Tensor, window_size: int) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W), the next multiples of window_size, completed by reflection below and right."""
    for dim in (2, 3):
        length = x.shape[dim]
        padded = length + -length % window_size
        if padded != length:
            x = x.index_select(dim, reflected(length, padded, x.device))
    return x


@cached_constant
def reflected(length: int, padded: int, device: torch.device) -> Tensor:
    """(padded,) indices 0 .. length - 1, then back without repeating the end, and forth again as often as it takes."""
    period = max(2 * (length - 1), 1)
    place = torch.arange(padded, device=device) % period
    return torch.minimum(place, period - place)

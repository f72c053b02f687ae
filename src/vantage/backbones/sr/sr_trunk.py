"""SR trunk: residual groups whose token mixer is any attention of ours, or a convolution, at the picture's own size.

The frame that EDSR (Lim et al., 2017, arXiv:1707.02921), RCAN and SwinIR (Liang et al., 2021, arXiv:2108.10257) share:
    x_0 = conv3x3(lr)
    block(x) = y + FFN(norm(y)),  y = x + mixer(norm(x))
    group(x) = x + conv3x3(block_n(... block_1(x)))
    sr = shuffle(x_0 + conv3x3(norm(group_m(... group_1(x_0))))) + bicubic(lr)
FFN(x) = W_2 (GELU(h) + depthwise3x3(GELU(h))),  h = W_1 x: positions need no table, so that any size will do.
Not a published network. The mixer that it has without a swap (attention=native) is convolutional and has an attention's
4 dim^2 weights: 1x1 to 2 dim, depthwise 3x3, GELU, 1x1 back. Odd blocks are `shifted` slots, which windows need.
Cost: all at stride 1 of the small picture; 26 dim^2 multiply-adds per pixel and block, and the mixer's.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from vantage.backbones.slots import Slot
from vantage.backbones.sr.upsample import check_scale, shuffle_once
from vantage.ops.resize import resize

VARIANTS = {
    "sr_trunk_pico": {"dim": 32, "num_heads": 2, "depths": (2, 2)},
    "sr_trunk_light": {"dim": 60, "num_heads": 6, "depths": (6, 6, 6, 6)},
    "sr_trunk_base": {"dim": 180, "num_heads": 6, "depths": (6, 6, 6, 6, 6, 6)},
}


class SRTrunk(nn.Module):
    def __init__(
        self,
        *,
        scale: int,
        in_chans: int = 3,
        dim: int = 60,
        num_heads: int = 6,
        depths: tuple[int, ...] = (6, 6, 6, 6),
        mlp_ratio: float = 2.0,
    ):
        """depths: blocks of each group."""
        super().__init__()
        self.scale = check_scale(scale)
        self.num_heads = num_heads
        self.conv_first = nn.Conv2d(in_chans, dim, 3, padding=1)
        self.groups = nn.ModuleList(Group(dim, depth, mlp_ratio) for depth in depths)
        self.norm = nn.LayerNorm(dim)
        self.conv_after = nn.Conv2d(dim, dim, 3, padding=1)
        self.upsample = shuffle_once(scale, dim, in_chans)
        nn.init.zeros_(self.upsample[0].weight)  # an untrained network is bicubic
        nn.init.zeros_(self.upsample[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_first(x)
        tokens = shallow.permute(0, 2, 3, 1)  # (B, h, w, dim)
        for group in self.groups:
            tokens = group(tokens)
        deep = self.conv_after(self.norm(tokens).permute(0, 3, 1, 2))
        return self.upsample(shallow + deep) + resize(x, self.scale)

    def slots(self) -> list[Slot]:
        return [
            Slot(
                name=f"groups.{stage}.blocks.{index}.attn",
                role="local",
                stage=stage,
                dim=self.conv_first.out_channels,
                num_heads=self.num_heads,
                stride=1,
                shifted=index % 2 == 1,
            )
            for stage, group in enumerate(self.groups)
            for index in range(len(group.blocks))
        ]


class Group(nn.Module):
    def __init__(self, dim: int, depth: int, mlp_ratio: float):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, mlp_ratio) for _ in range(depth))
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, dim) -> the same."""
        inner = x
        for block in self.blocks:
            inner = block(inner)
        return x + self.conv(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    def __init__(self, dim: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn: nn.Module = ConvMixer(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = ConvFFN(dim, round(mlp_ratio * dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class ConvMixer(nn.Module):
    """(B, h, w, dim) -> the same, through a depthwise 3x3 convolution of 2 dim channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.expand = nn.Linear(dim, 2 * dim)
        self.mix = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim)
        self.reduce = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.expand(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.reduce(F.gelu(mixed))


class ConvFFN(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(x))
        mixed = self.mix(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(hidden + mixed)

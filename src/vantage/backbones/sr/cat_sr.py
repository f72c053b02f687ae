"""CAT: residual groups of rectangle-window attention at the small picture's own size, then sub-pixel upsampling.

Paper: Cross Aggregation Transformer for Image Restoration (Chen et al., 2022), arXiv:2211.13654
    x_0 = conv3x3(lr)
    block(x) = y + MLP(LN(y)),  y = x + rwin(LN(x))                  attention=rwin, in odd blocks shifted by half
    group(x) = x + conv3x3(block_n(... block_1(x)))
    deep = x_0 + conv3x3(LN(group_m(... group_1(LN(x_0)))))
    sr = conv3x3(shuffle_steps(LeakyReLU(conv3x3(deep))))            64 channels
CAT-R and CAT-R-2 have rectangles of 4x16, MLPs of 4 dim and 2 dim; those of CAT-A and CAT-A-2 reach from border to
border and are 2, 2, 2, 4, 4, 4 and 4 pixels wide.
Cost per pixel of lr and block: 8 dim^2 (projections) + 4 short_side long_side dim + 4 mlp_ratio dim^2, multiply-adds
twice, long_side the side of the picture in A and A-2. Memory O(N dim), and what rwin.py says of a shift.

Names and shapes are the release's (zhengchen1999/CAT), whose state_dict loads with strict=True: attention has its
projections in the block there and in `attn` here, and its masks and offsets depend on sizes alone and are dropped.
Parameters at x2, x3, x4: CAT-R, CAT-A and CAT-A-2 16,456,103, 16,640,743, 16,603,815; CAT-R-2 11,777,543, 11,962,183,
11,925,255.

Departs from the release:
- The RGB mean is the data's normalisation and no part of the network; img_range is 1 in all its SR networks.
- Its network takes whole rectangles only, and its test code mirrors the picture to multiples of the longest fixed side.
  Here any picture will do: rwin masks what lies beyond the border. Its figures are of mirrored pictures.
- drop_path is 0 and must be asked for; the release's class has 0.1, which its options leave as it is.
The networks for JPEG artefacts and noise are left out.
"""

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import Permute

from vantage.attention.rwin import Rwin
from vantage.backbones.slots import Slot
from vantage.backbones.sr.upsample import check_scale, shuffle_steps

VARIANTS = {
    "cat_sr_r": {"short_sides": (4, 4, 4, 4, 4, 4), "long_side": 16, "mlp_ratio": 4.0},
    "cat_sr_a": {"short_sides": (2, 2, 2, 4, 4, 4), "long_side": None, "mlp_ratio": 4.0},
    "cat_sr_r_2": {"short_sides": (4, 4, 4, 4, 4, 4), "long_side": 16, "mlp_ratio": 2.0},
    "cat_sr_a_2": {"short_sides": (4, 4, 4, 4, 4, 4), "long_side": None, "mlp_ratio": 4.0},
}

UPSAMPLE_CHANS = 64  # whatever dim is
IN_ATTENTION = {"qkv", "proj", "attns", "get_v"}  # what the release's blocks hold themselves
DERIVED = {"attn_mask_0", "attn_mask_1", "rpe_biases", "relative_position_index"}  # its buffers


class CATSR(nn.Module):
    def __init__(
        self,
        *,
        scale: int,
        in_chans: int = 3,
        dim: int = 180,
        num_heads: int = 6,
        depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6),
        short_sides: tuple[int, ...] = (4, 4, 4, 4, 4, 4),
        long_side: int | None = 16,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        grad_checkpointing: bool = False,
    ):
        """depths and short_sides: one per group; long_side: None spans the picture.
        drop_path: rate of the last block, growing linearly from 0 at the first.
        grad_checkpointing: blocks are computed again in the backward pass instead of kept."""
        super().__init__()
        if len(short_sides) != len(depths):
            raise ValueError(f"cat_sr: short_sides={short_sides} and depths={depths}; give both one per group")
        self.scale = check_scale(scale)
        self.num_heads = num_heads
        self.conv_first = nn.Conv2d(in_chans, dim, 3, padding=1)
        self.before_RG = nn.Sequential(Permute([0, 2, 3, 1]), nn.LayerNorm(dim))
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.layers = nn.Sequential()
        for depth, short_side in zip(depths, short_sides):
            mixers = [
                Rwin(dim, num_heads, short_side=short_side, long_side=long_side, shift="half" if index % 2 else 0)
                for index in range(depth)
            ]
            blocks = [Block(dim, mixer, mlp_ratio, next(rates)) for mixer in mixers]
            self.layers.append(Group(dim, blocks, grad_checkpointing))
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(dim, UPSAMPLE_CHANS, 3, padding=1), nn.LeakyReLU())
        self.upsample = shuffle_steps(scale, UPSAMPLE_CHANS)
        self.conv_last = nn.Conv2d(UPSAMPLE_CHANS, in_chans, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_first(x)
        tokens = self.norm(self.layers(self.before_RG(shallow)))  # (B, h, w, dim)
        deep = shallow + self.conv_after_body(tokens.permute(0, 3, 1, 2))
        return self.conv_last(self.upsample(self.conv_before_upsample(deep)))

    def slots(self) -> list[Slot]:
        return [
            Slot(
                name=f"layers.{stage}.blocks.{index}.attn",
                role="local",
                stage=stage,
                dim=self.conv_first.out_channels,
                num_heads=self.num_heads,
                stride=1,
                shifted=index % 2 == 1,
            )
            for stage, group in enumerate(self.layers)
            for index in range(len(group.blocks))
        ]


class Group(nn.Module):
    """(B, h, w, dim) -> the same: blocks, a convolution and a residual around both."""

    def __init__(self, dim: int, blocks: list[nn.Module], grad_checkpointing: bool):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.grad_checkpointing = grad_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for block in self.blocks:
            inner = checkpoint(block, inner, use_reentrant=False) if self.grad_checkpointing else block(inner)
        return x + self.conv(inner.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """(B, h, w, dim) -> the same: a token mixer and an MLP, each behind a LayerNorm and with a residual."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = mixer
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.register_load_state_dict_pre_hook(from_release)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def from_release(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: a released block's tensors under the names they have here."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        parts = key.removeprefix(prefix).split(".")
        if parts[-1] in DERIVED:
            del state_dict[key]
        elif parts[0] in IN_ATTENTION:
            state_dict[f"{prefix}attn.{'.'.join(parts)}"] = state_dict.pop(key)

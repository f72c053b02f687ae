"""CATANet: attention among tokens that look alike anywhere in the picture, then in overlapping windows.

Paper: CATANet: Efficient Content-Aware Token Aggregation for Lightweight Image Super-Resolution (Liu et al., 2025),
arXiv:2503.06896
    x_0 = conv3x3(lr)
    TAB(x) = y + FFN(LN(y)),  y = x + token_aggregation(LN(x))
    LRSA(x) = y + FFN(LN(y)),  y = x + lrsa(LN(x))
    block(x) = x + conv3x3(LRSA(TAB(x)))                                     8 of them, both mixers in each
    sr = conv3x3(LeakyReLU(shuffle(conv3x3(x_0 + blocks(x_0))))) + bilinear(lr)          x4: two shuffles, each of 2
FFN(x) = W_2 (h + GELU(depthwise5x5(h))),  h = GELU(W_1 x). (B, 3, h, w) -> (B, 3, scale h, scale w).
The blocks' mixers vary: centres 16, 32, 64, 128, groups 256, 128, 64, 32, windows 16, 20, 24, 28, and once more.
Cost: linear in the pixels of the small picture, at whose size all is; the mixers are attention/token_aggregation.py
and attention/lrsa.py.
Parameters at x2, x3, x4: 477,435, 549,635, 535,195.

Names and shapes are those of the release (EquationWalker/CATANet), but that a TAB's mixer is one module, `attn`; a hook
moves a release's tensors there. It was trained on values of 0 to 1 with no mean subtracted.
Departs from the release as the two mixers do, which say how; training has a state, the centres, which those hold.
The sorted groups span the map they are given: a picture cut into tiles is not computed as the whole is.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vantage.attention.lrsa import Lrsa
from vantage.attention.token_aggregation import TokenAggregation
from vantage.backbones.slots import Slot
from vantage.backbones.sr.upsample import check_scale

VARIANTS = {"catanet": {}}  # the defaults are the paper's


class CATANet(nn.Module):
    def __init__(
        self,
        *,
        scale: int,
        in_chans: int = 3,
        dim: int = 40,
        num_heads: int = 4,
        qk_dim: int = 36,
        mlp_dim: int = 96,
        num_centres: Sequence[int] = (16, 32, 64, 128) * 2,
        group_size: Sequence[int] = (256, 128, 64, 32) * 2,
        window_size: Sequence[int] = (16, 20, 24, 28) * 2,
    ):
        """num_centres, group_size, window_size: of each block, and as many as there are blocks."""
        super().__init__()
        self.scale = check_scale(scale, (2, 3, 4))
        self.num_heads = num_heads
        self.first_conv = nn.Conv2d(in_chans, dim, 3, padding=1)
        self.blocks = nn.ModuleList()
        for centres, group, window in zip(num_centres, group_size, window_size, strict=True):
            shared = {"qk_dim": qk_dim, "qkv_bias": False}
            aggregation = TokenAggregation(dim, num_heads, num_centres=centres, group_size=group, **shared)
            local = Lrsa(dim, num_heads, window_size=window, **shared)
            self.blocks.append(nn.ModuleList([TAB(dim, aggregation, mlp_dim), LRSA(dim, local, mlp_dim)]))
        self.mid_convs = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in self.blocks)
        if scale == 4:
            self.upconv1 = nn.Conv2d(dim, 4 * dim, 3, padding=1)
            self.upconv2 = nn.Conv2d(dim, 4 * dim, 3, padding=1)
        else:
            self.upconv = nn.Conv2d(dim, scale**2 * dim, 3, padding=1)
        self.last_conv = nn.Conv2d(dim, in_chans, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        shallow = deep = self.first_conv(x)
        for (aggregation, local), conv in zip(self.blocks, self.mid_convs):
            tokens = local(aggregation(deep.permute(0, 2, 3, 1)))  # (B, h, w, dim)
            deep = deep + conv(tokens.permute(0, 3, 1, 2))
        out = deep + shallow
        steps = ((self.upconv1, 2), (self.upconv2, 2)) if self.scale == 4 else ((self.upconv, self.scale),)
        for conv, factor in steps:
            out = F.leaky_relu(F.pixel_shuffle(conv(out), factor), 0.1)
        return self.last_conv(out) + F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)

    def slots(self) -> list[Slot]:
        shared = {"dim": self.first_conv.out_channels, "num_heads": self.num_heads, "stride": 1}
        return [
            slot
            for stage in range(len(self.blocks))
            for slot in (
                Slot(name=f"blocks.{stage}.0.attn", role="full", stage=stage, **shared),
                Slot(name=f"blocks.{stage}.1.layer.0.fn", role="local", stage=stage, shifted=stage % 2 == 1, **shared),
            )
        ]


class TAB(nn.Module):
    """Token aggregation block, (B, h, w, dim) -> the same."""

    def __init__(self, dim: int, attn: nn.Module, mlp_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = attn
        self.mlp = PreNorm(dim, ConvFFN(dim, mlp_dim))
        self.register_load_state_dict_pre_hook(move_mixer)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x + self.attn(self.norm(x)))


class LRSA(nn.Module):
    """Local region self-attention block, (B, h, w, dim) -> the same."""

    def __init__(self, dim: int, attn: nn.Module, mlp_dim: int):
        super().__init__()
        self.layer = nn.Sequential(PreNorm(dim, attn), PreNorm(dim, ConvFFN(dim, mlp_dim)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class PreNorm(nn.Module):
    """x + fn(LN(x)), (B, h, w, dim) -> the same."""

    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(self.norm(x))


class ConvFFN(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        depthwise = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden)
        self.dwconv = nn.ModuleDict({"depthwise_conv": nn.Sequential(depthwise, nn.GELU())})
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(x))
        mixed = self.dwconv["depthwise_conv"](hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(hidden + mixed)


def move_mixer(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """A hook for `load_state_dict`: the release keeps the tensors of a TAB's mixer beside its norm and its FFN."""
    for name in ("irca_attn.", "iasa_attn.", "conv1x1.", "means", "initted"):
        for key in [key for key in state_dict if key.startswith(prefix + name)]:
            state_dict[f"{prefix}attn.{key.removeprefix(prefix)}"] = state_dict.pop(key)

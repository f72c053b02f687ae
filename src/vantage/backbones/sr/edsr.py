"""EDSR: residual blocks without normalisation at the small picture's size, sub-pixel convolutions at the end.

Paper: Enhanced Deep Residual Networks for Single Image Super-Resolution (Lim et al., 2017), arXiv:1707.02921
    x_0 = conv(r lr),  block(x) = x + s conv(ReLU(conv(x)))
    sr = conv(shuffle(x_0 + conv(block_n(... block_1(x_0))))) / r
Every convolution is 3x3 with a bias; r is `img_range`, s is `res_scale`, without which 256 channels train unstably.
Cost: (18 num_blocks + 9) dim^2 multiply-adds per pixel of the small picture, those of the shuffles (36, 81, 180 or
756 dim^2 at x2, x3, x4, x8) and 9 dim in_chans per pixel of the large one.
Departs from the release (sanghyun-son/EDSR-PyTorch), whose parameter names and shapes these are: it subtracts and adds
the mean colour in two fixed 1x1 convolutions, 24 numbers which `parameters()` counts there. Here the data's
normalisation does that, and a checkpoint's are dropped. The paper has no x8; the release's upsampler does.
"""

from torch import Tensor, nn

from vantage.backbones.slots import Slot
from vantage.backbones.sr.upsample import shuffle_steps

VARIANTS = {
    "edsr_baseline": {"dim": 64, "num_blocks": 16, "res_scale": 1.0},
    "edsr": {"dim": 256, "num_blocks": 32, "res_scale": 0.1},
}


class EDSR(nn.Module):
    def __init__(
        self,
        *,
        scale: int,
        in_chans: int = 3,
        dim: int = 256,
        num_blocks: int = 32,
        res_scale: float = 0.1,
        img_range: float = 255.0,
    ):
        """img_range: the convolutions see pixels times this, which the release's weights expect."""
        super().__init__()
        self.img_range = img_range
        self.head = nn.Sequential(nn.Conv2d(in_chans, dim, 3, padding=1))
        blocks = (Block(dim, res_scale) for _ in range(num_blocks))
        self.body = nn.Sequential(*blocks, nn.Conv2d(dim, dim, 3, padding=1))
        self.tail = nn.Sequential(shuffle_steps(scale, dim), nn.Conv2d(dim, in_chans, 3, padding=1))
        self.register_load_state_dict_pre_hook(drop_mean_shift)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x * self.img_range)
        return self.tail(shallow + self.body(shallow)) / self.img_range

    def slots(self) -> list[Slot]:
        return []


class Block(nn.Module):
    def __init__(self, dim: int, res_scale: float):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res_scale * self.body(x)


def drop_mean_shift(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """A hook for `load_state_dict`: takes the colour shifts out of a release's weights."""
    for shift in ("sub_mean", "add_mean"):
        for kind in ("weight", "bias"):
            state_dict.pop(f"{prefix}{shift}.{kind}", None)

"""Large kernel convolutional attention (LKCA): one learned kernel over the whole map in the place of q . k.

Paper: LKCA: Large Kernel Convolutional Attention (Li et al., 2024), arXiv:2401.05738, in its third version
Interpreting and Improving Attention From the Perspective of Large Kernel Convolution
    V = X W_v,  out_i = sum_j w[j - i] V_j, then a linear projection             j - i the offset (dy, dx) of two tokens
w has an entry for every offset in the map, (2H - 1, 2W - 1), and is the same for all channels and images: a
convolution with zeros around the map, or a block Toeplitz matrix in the place of the softmax's.
    kernel_size=null  the whole map, as the paper: between Fourier transforms of at least 2H - 1 by 2W - 1 points, where
                      nothing wraps; rows of zeros and rows that nobody asks for are not transformed. The kernel belongs
                      to a map of `table_size`; on other maps each entry's share is spread linearly over the nearest
                      offsets, so that the kernel keeps its sum.
    kernel_size=K     K x K pixels on any map, as a depthwise convolution
    sharing           whether one kernel serves all channels (shared), those of a head (head) or one each (channel)
Cost: 4 N dim^2 for the layers; for the whole map 15 N dim log2(4 N) and O(4 N dim) memory, else 2 K^2 N dim. Directly,
as the release does it, the whole map costs 8 N^2 dim.
num_heads matters for sharing=head alone. Kernels may be negative and their rows do not sum to one: no attention map.

Released as CatworldLee/LKCA-MiniViTsTrainer-Pytorch-CIFAR-TinyImageNet, models/largevit_cnn.py and largevit_vit.py.
Departures from it:
- Its kernel starts at zero, where neither layer gets a gradient in the first step; here it has deviation 0.02.
- Its maps are square and of one size. Other maps, kernels smaller than the map, and sharing are ours.
- Its W_v has no bias: qkv_bias=false.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from vantage.attention.base import Attention, pair
from vantage.attention.convolution import depthwise, depthwise_flops, fast_length, real_transform_flops, transform_flops
from vantage.ops.constants import cached_constant
from vantage.position.base import Position

SHARING = ("shared", "head", "channel")
CHANNELS_AT_ONCE = 32


class Lkca(Attention):
    cost = "4*N*dim^2 + 15*N*dim*log2(4*N), or 4*N*dim^2 + 2*N*dim*kernel_size^2"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel_size: int | None = None,
        table_size: int | Sequence[int] = 14,
        sharing: str = "shared",
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        if kernel_size is not None and (not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0):
            raise ValueError(
                f"lkca: kernel_size {kernel_size!r} is not odd and positive; use such a one, or null for the whole map"
            )
        if sharing not in SHARING:
            raise ValueError(f"lkca: sharing {sharing!r} is unknown; use one of {', '.join(SHARING)}")
        self.refuse_attn_drop(attn_drop)
        self.kernel_size = kernel_size
        self.table_size = pair(table_size, "attention.table_size")
        self.sharing = sharing
        kernels = {"shared": 1, "head": num_heads, "channel": dim}[sharing]
        sides = [2 * length - 1 for length in self.table_size] if kernel_size is None else [kernel_size] * 2
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.kernel = nn.Parameter(torch.empty(kernels, *sides))
        nn.init.trunc_normal_(self.kernel, std=0.02)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        size = f"table_size={self.table_size}" if self.kernel_size is None else f"kernel_size={self.kernel_size}"
        return f"{size}, sharing={self.sharing}"

    def forward(self, x: Tensor) -> Tensor:
        v = self.v(x)
        if self.kernel_size is None:
            with torch.autocast(x.device.type, enabled=False):
                out = correlate(v, self.whole_map(*x.shape[1:3]))
        else:
            kernel = self.kernel[:, None].expand(-1, self.dim // len(self.kernel), -1, -1)
            out = depthwise(v, kernel.flatten(0, 1))
        return self.proj_drop(self.proj(out))

    def whole_map(self, height: int, width: int) -> Tensor:
        """The kernels of a map of that size: (kernels, 2 height - 1, 2 width - 1)."""
        if (height, width) == self.table_size:
            return self.kernel
        rows, columns = (
            spread(own, wanted, self.kernel.device, self.kernel.dtype)
            for own, wanted in zip(self.table_size, (height, width))
        )
        return rows @ self.kernel @ columns.mT

    def flops(self, height: int, width: int) -> int:
        tokens, kernels = height * width, len(self.kernel)
        layers = 4 * tokens * self.dim**2
        if self.kernel_size is not None:
            return layers + depthwise_flops(self.dim, self.kernel_size, height, width)
        tall, wide = fast_length(2 * height - 1), fast_length(2 * width - 1)
        if (height, width) != self.table_size:
            rows, columns = self.kernel.shape[1:]
            layers += 2 * kernels * (2 * height - 1) * columns * (rows + 2 * width - 1)
        pruned = height * real_transform_flops(wide) + (wide // 2 + 1) * transform_flops(tall)
        return layers + 2 * self.dim * pruned + kernels * real_transform_flops(tall * wide)


def correlate(v: Tensor, kernel: Tensor) -> Tensor:
    """sum_j kernel[j - i] v[j]: v (B, H, W, C), kernels (k, 2H - 1, 2W - 1) of C / k channels each -> (B, H, W, C).

    The kernel's corner stands at the origin, so the result starts at (H - 1, W - 1). A circle of 2H - 1 rows or more
    folds what lies past its end onto the first H - 1 rows only.
    """
    height, width = v.shape[1:3]
    tall, wide = fast_length(2 * height - 1), fast_length(2 * width - 1)
    rows, columns = slice(height - 1, 2 * height - 1), slice(width - 1, 2 * width - 1)
    precise = torch.promote_types(v.dtype, torch.float32)
    filters = torch.fft.rfft(kernel.to(precise).flip(1, 2), n=wide)  # flipped: a convolution
    filters = torch.fft.fft(filters, n=tall, dim=1)
    out = []
    for part, own in few_channels(v.to(precise).movedim(-1, 1), filters):
        # only `height` rows hold something on the way there, and only `height` are asked for on the way back
        spectrum = torch.fft.fft(torch.fft.rfft(part, n=wide), n=tall, dim=2)
        product = spectrum.unflatten(1, (len(own), -1)) * own[:, None]
        out.append(torch.fft.irfft(torch.fft.ifft(product.flatten(1, 2), dim=2)[:, :, rows], n=wide)[..., columns])
    return torch.cat(out, 1).movedim(1, -1).to(v.dtype)


def few_channels(v: Tensor, filters: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """v (B, C, H, W) in parts of at most 32 channels, each with its filters: spectra of all would fit no cache."""
    width = v.shape[1] // len(filters)
    if width < CHANNELS_AT_ONCE:
        count = CHANNELS_AT_ONCE // width
        yield from zip(v.split(count * width, 1), filters.split(count))
    else:
        for channels, own in zip(v.split(width, 1), filters.split(1)):
            yield from ((part, own) for part in channels.split(CHANNELS_AT_ONCE, 1))


@cached_constant
def spread(own: int, wanted: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(2 wanted - 1, 2 own - 1): how the entry of each own offset is shared out to the wanted ones; columns sum to one.

    Ends go to ends and offset 0 to offset 0. On a finer map an entry's share falls off linearly to its neighbours.
    """
    stretch = (wanted - 1) / (own - 1) if own > 1 else 0
    offsets, places = (torch.arange(1 - n, n, device=device, dtype=dtype) for n in (wanted, own))
    shares = (1 - (offsets[:, None] - places * stretch).abs() / max(stretch, 1)).clamp(min=0)
    return shares / shares.sum(0)

"""PEM's pixel decoder: from the coarsest map to the finest, gated by context, deformed where needed, upsampled.

Paper: PEM: Prototype-based Efficient MaskFormer for Image Segmentation (Cavagnero et al., 2024), arXiv:2402.19422
    y_i = gate(lateral(C_i)) + up(z_{i+1}),   at the coarsest level + pooled(GAP(C)) instead of up
    gate(x) = x + x * sigmoid(W_2 relu(BN(W_1 GAP(x))))
    z_i = relu(BN(DCNv2(y_i)))  at all levels but the finest, the memory of the queries
    mask features = relu(BN(conv1x1(y_0)))
DCNv2(y)(n) = sum_k w_k m_k(n) y(n + n_k + o_k(n)), m = sigmoid, with the offsets o and the logits of m from a
convolution that starts at zero (Zhu et al., 2019, arXiv:1811.11168).
`up` is a transposed 4x4 convolution of stride 2 with norm and ReLU that starts as bilinear interpolation of every
channel, fitted to the finer map where that is not twice as large. `legacy` repeats two traits of the released code:
the gate passes two sigmoids, which keeps it within 0.5 .. 0.731, and the bilinear weights stand only where every
channel leads to the first one, the others being random.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from vantage.tasks.segmentation.decoders.layers import BatchNorm, ConvNormAct
from vantage.tasks.segmentation.resize import Resize
from vantage.tasks.segmentation.wrap import pad_columns


class PixelDecoder(nn.Module):
    """forward(maps, finest first) -> mask features (B, mask_dim, h, w) at the finest map's size, and memory.

    memory  of maps (B, width, h_i, w_i), coarsest first, at most `num_memory`; all levels but the finest, or the only
            level there is
    """

    def __init__(
        self, channels: Sequence[int], *, width: int, mask_dim: int, num_memory: int = 3, legacy: bool = False
    ):
        super().__init__()
        self.num_memory = num_memory
        self.laterals = nn.ModuleList(ConvNormAct(one, width, 1) for one in channels)
        self.gates = nn.ModuleList(ContextGate(width, legacy=legacy) for _ in channels)
        self.pooled = ConvNormAct(channels[-1], width, 1)
        # index i belongs to map i + 1, index 0 also to the map that is alone
        self.deforms = nn.ModuleList(DeformBlock(width) for _ in channels[1:] or channels)
        self.ups = nn.ModuleList(Upsample(width, legacy=legacy) for _ in channels[1:])
        self.out = ConvNormAct(width, mask_dim, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        gated = [gate(lateral(one)) for gate, lateral, one in zip(self.gates, self.laterals, maps)]
        merged = gated[-1] + self.pooled(maps[-1].mean((2, 3), keepdim=True))
        memory = []
        for finer in range(len(maps) - 2, -1, -1):
            memory.append(self.deforms[finer](merged))
            merged = gated[finer] + self.ups[finer](memory[-1], gated[finer].shape[-2:])
        if not memory:
            merged = self.deforms[0](merged)
            memory.append(merged)
        return self.out(merged), memory[: self.num_memory]


class ContextGate(nn.Module):
    """x (B, width, H, W) -> x + x * g, one g per channel from the map's mean."""

    def __init__(self, width: int, *, legacy: bool = False):
        super().__init__()
        self.legacy = legacy
        self.mlp = nn.Sequential(
            ConvNormAct(width, width // 2, 1),
            nn.Conv2d(width // 2, width, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(x.mean((2, 3), keepdim=True)).sigmoid()
        return x + x * (gate.sigmoid() if self.legacy else gate)


class DeformBlock(nn.Module):
    """Modulated deformable 3x3 convolution, norm and ReLU: x (B, width, H, W) -> (B, width, H, W).

    Half of a plain convolution at the start, with offsets 0 and every m = sigmoid(0). With `wraps` taps beyond the left
    or right edge, however far, read from the other one.
    """

    def __init__(self, width: int):
        super().__init__()
        self.wraps = False
        self.to_offsets = nn.Conv2d(width, 27, 3, padding=1)  # (y, x) of nine taps, then their nine logits of m
        nn.init.zeros_(self.to_offsets.weight)
        nn.init.zeros_(self.to_offsets.bias)
        self.weight = nn.Parameter(torch.empty(width, width, 3, 3))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = BatchNorm(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.convolve(x)))

    def convolve(self, x: Tensor) -> Tensor:
        real = torch.promote_types(x.dtype, torch.float32)  # the CPU's kernel has no bfloat16, and places need digits
        offsets, mask = self.to_offsets(x).to(real).split((18, 9), 1)
        with torch.autocast(x.device.type, enabled=False):
            values = x.to(real)
            if self.wraps:
                offsets = around(offsets)
                values = pad_columns(values, 1, 1)
            padding = (1, 0) if self.wraps else (1, 1)
            weight = self.weight.to(real)
            return deform_conv2d(values, offsets, weight, padding=padding, mask=mask.sigmoid()).to(x.dtype)


def around(offsets: Tensor) -> Tensor:
    """Offsets (B, 18, H, W) of taps on a circle of W columns -> those that lead to the same columns, all in 0 .. W."""
    width = offsets.shape[-1]
    down, across = offsets.unflatten(1, (9, 2)).unbind(2)  # (B, 9, H, W)
    taps = torch.tensor([-1.0, 0.0, 1.0], device=offsets.device).repeat(3)
    start = taps[:, None, None] + torch.arange(width, device=offsets.device)  # (9, 1, W)
    return torch.stack([down, (start + across) % width - start], 2).flatten(1, 2)


class Upsample(nn.Module):
    """x (B, width, h, w), size -> (B, width, *size), size about (2h, 2w)."""

    def __init__(self, width: int, *, legacy: bool = False):
        super().__init__()
        self.deconv = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False)
        line = torch.tensor([0.25, 0.75, 0.75, 0.25])
        with torch.no_grad():
            if legacy:
                self.deconv.weight[:, 0] = torch.outer(line, line)
            else:
                self.deconv.weight.zero_()
                self.deconv.weight[range(width), range(width)] = torch.outer(line, line)
        self.norm = BatchNorm(width)
        self.act = nn.ReLU(inplace=True)
        self.resize = Resize()

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        x = self.act(self.norm(self.deconv(x)))
        height, width = size
        if x.shape[-2] - height in (0, 1) and x.shape[-1] - width in (0, 1):
            return x[..., :height, :width]  # the finer map's side was odd and strided layers round up: cells line up
        return self.resize(x, size)

"""HiLo attention: some heads attend inside small windows, the others to a pooled map.

Paper: Fast Vision Transformers with HiLo Attention (Pan, Cai, Zhuang, 2022), arXiv:2205.13213
    Nl = floor(alpha * num_heads) low-frequency heads, the other Nh high-frequency; d = dim / num_heads
    Hi-Fi: softmax(q k^T / sqrt(d)) v inside non-overlapping s x s windows                (Nh heads)
    Lo-Fi: q from every pixel, k and v from the map averaged over the same windows        (Nl heads)
    out = [Hi-Fi W_h, Lo-Fi W_l]; each branch has its own projection, nothing mixes them afterwards
Cost: Hi-Fi 4 N s^2 (Nh d), Lo-Fi 4 N^2 / s^2 (Nl d), projections O(N dim^2). No positional parameter.
Weights are named as in the release (ziplab/LITv2): h_qkv, h_proj, l_q, l_kv, l_proj.

A branch without heads does not exist: alpha=0, or alpha * num_heads < 1 (so num_heads=1 unless alpha=1), is window
attention; alpha=1 is pooled attention; window_size=1 gives all heads to Lo-Fi whatever alpha is, which then is
standard multi-head attention.

Departs from the release:
- Its classification code assumes square maps of whole windows; its detection code pads with zeros, which then count
  as keys and in the averages. Here the windows at the lower and right border are smaller: only real pixels are keys,
  and an average is over real pixels.
- It ignores attn_drop and proj_drop; here they drop attention weights and output values.
- floor(alpha * num_heads) is taken with a tolerance, so that 0.29 * 100 is 29.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.attention.base import Attention, note
from vantage.position.base import Position


class Hilo(Attention):
    cost = "4*N*dim^2 + 4*N*s^2*dim_hi + 4*N^2/s^2*dim_lo"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int = 2,
        alpha: float = 0.9,
        clamp: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        if not isinstance(window_size, int) or window_size < 1:
            raise ValueError(f"hilo: window_size {window_size!r} is not a whole number >= 1; the paper uses 2 or 4")
        if not 0 <= alpha <= 1:
            raise ValueError(f"hilo: alpha {alpha} is not a share of the heads between 0 and 1; the paper uses 0.9")
        self.window_size = window_size
        self.clamp = clamp
        self.low_heads = num_heads if window_size == 1 else math.floor(alpha * num_heads + 1e-6)
        self.high_heads = num_heads - self.low_heads
        if alpha > 0 and not self.low_heads:
            note(
                f"hilo: attention.alpha={alpha} of {num_heads} heads leaves no low-frequency head, "
                "tokens see their window only"
            )

        if self.high_heads:
            high_dim = self.high_heads * self.head_dim
            self.h_qkv = nn.Linear(dim, 3 * high_dim, bias=qkv_bias)
            self.h_proj = nn.Linear(high_dim, high_dim)
        if self.low_heads:
            low_dim = self.low_heads * self.head_dim
            self.l_q = nn.Linear(dim, low_dim, bias=qkv_bias)
            self.l_kv = nn.Linear(dim, 2 * low_dim, bias=qkv_bias)
            self.l_proj = nn.Linear(low_dim, low_dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"window_size={self.window_size}, high_heads={self.high_heads}, low_heads={self.low_heads}"

    def forward(self, x: Tensor) -> Tensor:
        window = self.window(x.shape[1], x.shape[2])
        branches = []
        if self.high_heads:
            branches.append(self.h_proj(self.high(x, window)))
        if self.low_heads:
            branches.append(self.l_proj(self.low(x, window)))
        return self.proj_drop(torch.cat(branches, dim=-1) if len(branches) > 1 else branches[0])

    def window(self, height: int, width: int) -> tuple[int, int]:
        """window_size, clamped per axis to the map."""
        size = self.window_size
        if size > height or size > width:
            if not self.clamp:
                raise ValueError(
                    f"hilo: window_size {size} does not fit the {height}x{width} map and attention.clamp is false; "
                    f"use attention.window_size={min(height, width)} or attention.clamp=true"
                )
            note(f"hilo: window_size {size} is clamped to the {height}x{width} map")
        return min(size, height), min(size, width)

    def high(self, x: Tensor, window: tuple[int, int]) -> Tensor:
        """Attention inside windows, (B, H, W, high_heads * head_dim); windows at the far borders may be smaller."""
        qkv = self.h_qkv(x)
        bands = []
        for top, bottom, window_height in tiles(x.shape[1], window[0]):
            parts = [
                self.attend_windows(qkv[:, top:bottom, left:right], window_height, window_width)
                for left, right, window_width in tiles(x.shape[2], window[1])
            ]
            bands.append(join(parts, dim=2))
        return join(bands, dim=1)

    def attend_windows(self, qkv: Tensor, window_height: int, window_width: int) -> Tensor:
        """qkv (B, H, W, 3 * C) of whole windows -> (B, H, W, C)."""
        batch, height, width, _ = qkv.shape
        rows, columns, area = height // window_height, width // window_width, window_height * window_width
        # (B, rows, columns, window_height, window_width, 3 * C), then every window is a batch entry
        qkv = qkv.view(batch, rows, window_height, columns, window_width, -1).transpose(2, 3)
        qkv = qkv.reshape(batch * rows * columns, area, 3, self.high_heads, self.head_dim)
        out = self.attend(*qkv.permute(2, 0, 3, 1, 4))  # (B * windows, heads, area, head_dim)
        out = out.transpose(1, 2).reshape(batch, rows, columns, window_height, window_width, -1)
        return out.transpose(2, 3).reshape(batch, height, width, -1)

    def low(self, x: Tensor, window: tuple[int, int]) -> Tensor:
        """Every pixel attends to the averages of the windows, (B, H, W, low_heads * head_dim)."""
        batch, height, width, _ = x.shape
        q = self.l_q(x).view(batch, height * width, self.low_heads, self.head_dim).transpose(1, 2)
        kv = self.l_kv(pool(x, window)).view(batch, -1, 2, self.low_heads, self.head_dim)
        k, v = kv.permute(2, 0, 3, 1, 4)  # (B, heads, windows, head_dim)
        return self.attend(q, k, v).transpose(1, 2).reshape(batch, height, width, -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)

    def attention_map(self, x: Tensor) -> Tensor:
        """Heads are ordered high, then low. A pooled key's weight is spread evenly over the pixels of its window."""
        batch, height, width, _ = x.shape
        window = self.window(height, width)
        rows = torch.arange(height, device=x.device) // window[0]
        columns = torch.arange(width, device=x.device) // window[1]
        index = (rows[:, None] * (columns[-1] + 1) + columns).flatten()  # (N,) the window of each pixel
        same = index[:, None] == index
        maps = []
        if self.high_heads:
            q, k, _ = self.h_qkv(x).view(batch, height * width, 3, self.high_heads, -1).permute(2, 0, 3, 1, 4)
            maps.append(self.softmax(q @ k.transpose(-2, -1), hidden=~same))
        if self.low_heads:
            q = self.l_q(x).view(batch, height * width, self.low_heads, -1).transpose(1, 2)
            kv = self.l_kv(pool(x, window)).view(batch, -1, 2, self.low_heads, self.head_dim)
            maps.append(self.softmax(q @ kv[:, :, 0].permute(0, 2, 3, 1))[..., index] / same.sum(dim=-1))
        return torch.cat(maps, dim=1)

    def softmax(self, products: Tensor, hidden: Tensor | None = None) -> Tensor:
        logits = products.to(torch.promote_types(products.dtype, torch.float32)) * self.head_dim**-0.5
        return (logits if hidden is None else logits.masked_fill(hidden, -math.inf)).softmax(dim=-1)

    def flops(self, height: int, width: int) -> int:
        tokens, dim, size = height * width, self.dim, self.window_size
        high_dim, low_dim = self.high_heads * self.head_dim, self.low_heads * self.head_dim
        # pairs of rows that share a window, and pairs of columns
        rows, columns = (sum((stop - start) * own for start, stop, own in tiles(n, size)) for n in (height, width))
        pooled = math.ceil(height / size) * math.ceil(width / size)
        high = 6 * tokens * dim * high_dim + 4 * rows * columns * high_dim + 2 * tokens * high_dim**2
        low = (2 * tokens + 4 * pooled) * dim * low_dim + 4 * tokens * pooled * low_dim + 2 * tokens * low_dim**2
        return high + low


def tiles(length: int, size: int) -> list[tuple[int, int, int]]:
    """(start, stop, size) of the stretch of whole windows and of the smaller window that is left over."""
    whole = length - length % size
    stretches = [(0, whole, size), (whole, length, length - whole)]
    return [stretch for stretch in stretches if stretch[0] < stretch[1]]


def join(parts: list[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim=dim) if len(parts) > 1 else parts[0]


def pool(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, H, W, C) -> (B, ceil(H / s), ceil(W / s), C): averages over the real pixels of each window."""
    if window == (1, 1):
        return x
    x = F.avg_pool2d(x.permute(0, 3, 1, 2), window, ceil_mode=True, count_include_pad=False)
    return x.permute(0, 2, 3, 1)

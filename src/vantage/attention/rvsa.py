"""Rotated varied-size window attention: every head of every window moves, resizes and turns the window it reads.

Paper: Advancing Plain Vision Transformer Toward Remote Sensing Foundation Model (Wang et al., 2022), arXiv:2208.03987
    per window and head, from m = LeakyReLU(mean of the window's tokens):  offset o (2), scale s (2), angle a = W m + b
    p_j = r + Rot(a) (u_j * (1 + s)) + o * (n * window_size - 1) / (2 n)
    out_w = softmax(Q_w K(p)^T / sqrt(d) + Q_w . R_h + Q_w . R_w + table) V(p)
where r is the centre of the window, u_j a slot of it seen from there, n the number of windows on that axis, K(p) and
V(p) bilinear reads of the maps of keys and values: (windows, window_size^2, d) per head. Queries stay in their window.
Everything is in pixels, x to the right and y down, so that a > 0 turns clockwise on the screen. W and b start at zero:
the mechanism starts as window attention. `separate_kv` gives keys and values a window each (RVSA's diamond variant).
The paper's backbones attend globally in every third block of a ViT: choose the others as `model.slots`.

Cost: O(N dim^2 + N window_size^2 dim) time, O(N window_size^2) memory per head for the logits.
Weights qkv and proj are those of any ViT; rel_pos_h and rel_pos_w are laid out as in the release
(ViTAE-Transformer/Remote-Sensing-RVSA), whose bias table is here a `rel_bias` and whose three predictors are one.

Departs from the release:
- The map is padded at its lower and right border only, and what is padded is neither averaged nor attended. A sample
  more than half a pixel outside the map is masked, a nearer one takes the value of the border; there both blend with
  zeros, and a zero key still takes its share of the softmax. A query whose samples are all masked attends itself.
- It turns windows in units of the map's sides, which shears them on maps that are not square, and divides the offset
  along x by the number of windows along y; on square maps both agree with what is computed here.
- Its zero initialisation of the predictors is never called and leaves the angle out.
- It declares attn_drop and does not apply it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.attention.base import note, pair
from vantage.attention.multihead import MultiHead
from vantage.position.base import Position
from vantage.position.grid import pairwise_offsets, pixel_coords
from vantage.position.rel_bias import RelBias


class Rvsa(MultiHead):
    supports_position = ()  # brings its own tables
    cost = "8*N*dim^2 + 4*N*window_size^2*dim + 4*N*window_size*dim"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int | Sequence[int] = 7,
        separate_kv: bool = False,
        clamp: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        """separate_kv: keys and values are read in windows of their own. clamp: a window larger than the map takes
        the map's size; False raises instead."""
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, position=position)
        self.window_size = pair(window_size, "attention.window_size")
        self.separate_kv = separate_kv
        self.clamp = clamp
        # (heads, reads, 5): offset x, y, scale x, y and angle; one read for k and v together, or one each
        self.reads = 2 if separate_kv else 1
        self.sampling = nn.Linear(dim, num_heads * self.reads * 5)
        nn.init.zeros_(self.sampling.weight)
        nn.init.zeros_(self.sampling.bias)
        self.rel_bias = RelBias(self.head_dim, num_heads, window_size=self.window_size)
        # row i: query - key = i - (window - 1) along the axis
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * self.window_size[0] - 1, self.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * self.window_size[1] - 1, self.head_dim))

    def extra_repr(self) -> str:
        return f"window_size={self.window_size}, separate_kv={self.separate_kv}"

    def layout(self, height: int, width: int) -> tuple[int, int]:
        """The window's size on a map of this size."""
        size = min(self.window_size[0], height), min(self.window_size[1], width)
        if size != self.window_size:
            if not self.clamp:
                raise ValueError(
                    f"rvsa: window_size {self.window_size} does not fit the {height}x{width} map and attention.clamp "
                    f"is false; use attention.window_size={min(height, width)} or attention.clamp=true"
                )
            note(f"rvsa: window_size {self.window_size} is clamped to {size} on the {height}x{width} map")
        return size

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        size = self.layout(height, width)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        points = self.points(x, size)
        k_read, v_read = self.read(k, v, points)
        inside, alone = visible(points, height, width)
        weights = self.weights(self.split(q, size), k_read, inside | alone, size)
        out = F.dropout(weights, self.attn_drop, self.training).to(v_read.dtype) @ v_read
        out = torch.where(alone[..., None], self.split(v, size), out)
        out = merge(out, size, height, width)  # (B, heads, H, W, head_dim)
        return self.proj_drop(self.proj(out.permute(0, 2, 3, 1, 4).reshape(x.shape)))

    def split(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, H, W, C) -> (B, heads, windows, slots, head_dim); zeros beyond the lower and right border."""
        batch, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, -width % size[1], 0, -height % size[0]))
        x = x.unflatten(2, (-1, size[1])).unflatten(1, (-1, size[0]))  # (B, rows, wh, columns, ww, C)
        x = x.unflatten(-1, (self.num_heads, self.head_dim)).permute(0, 5, 1, 3, 2, 4, 6)
        return x.reshape(batch, self.num_heads, -1, size[0] * size[1], self.head_dim)

    def points(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Where heads read, (B, heads, reads, windows, slots, 2) for each window: pixels (x, y), float32 at least."""
        means = F.avg_pool2d(x.permute(0, 3, 1, 2), size, ceil_mode=True, count_include_pad=False)  # of real pixels
        rows, columns = means.shape[2:]
        moves = self.sampling(F.leaky_relu(means.permute(0, 2, 3, 1)))
        moves = moves.to(torch.promote_types(moves.dtype, torch.float32))
        moves = moves.view(len(x), rows * columns, self.num_heads, self.reads, 5, 1).permute(4, 0, 2, 3, 1, 5)
        offset_x, offset_y, scale_x, scale_y, angle = moves.unbind(0)  # (B, heads, reads, windows, 1) each
        centre_y, centre_x = pixel_coords(rows, columns, x.device)[..., None].unbind(1)  # (windows, 1), in windows
        local_y, local_x = pixel_coords(*size, x.device).unbind(1)  # (slots), from the window's first pixel
        local_y = (local_y - (size[0] - 1) / 2) * (1 + scale_y)
        local_x = (local_x - (size[1] - 1) / 2) * (1 + scale_x)
        centre_y = centre_y * size[0] + (size[0] - 1) / 2 + offset_y * ((rows * size[0] - 1) / (2 * rows))
        centre_x = centre_x * size[1] + (size[1] - 1) / 2 + offset_x * ((columns * size[1] - 1) / (2 * columns))
        cos, sin = angle.cos(), angle.sin()
        return torch.stack((centre_x + local_x * cos - local_y * sin, centre_y + local_x * sin + local_y * cos), -1)

    def read(self, k: Tensor, v: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """k and v (B, H, W, C) at the points, bilinear, (B, heads, windows, slots, head_dim) each."""
        batch, height, width, _ = k.shape
        windows, slots = points.shape[3:5]
        maps = torch.stack((k, v), 1).unflatten(-1, (self.num_heads, self.head_dim)).permute(0, 4, 1, 5, 2, 3)
        # one read takes the channels of k and v together; coordinates of half precision would be off by pixels
        maps = maps.reshape(batch * self.num_heads * self.reads, -1, height, width).to(points.dtype)
        x, y = points.flatten(0, 2).unbind(-1)
        grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), -1)
        found = F.grid_sample(maps, grid, padding_mode="border", align_corners=False).to(k.dtype)
        found = found.view(batch, self.num_heads, 2, self.head_dim, windows, slots)
        return found.permute(2, 0, 1, 4, 5, 3).unbind(0)

    def weights(self, q: Tensor, k: Tensor, seen: Tensor, size: tuple[int, int]) -> Tensor:
        """Softmax weights (B, heads, windows, slots, slots) in float32 at least; seen (B, heads, windows, slots)."""
        logits = q @ k.mT
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.head_dim**-0.5
        logits = logits + self.rel_bias.bias(pairwise_offsets(*size, q.device), self.window_size)[:, None]
        q = q.unflatten(3, size)  # (B, heads, windows, wh, ww, head_dim)
        rows = torch.einsum("bnwyxd,ykd->bnwyxk", q, relative(self.rel_pos_h, size[0]))
        columns = torch.einsum("bnwyxd,xkd->bnwyxk", q, relative(self.rel_pos_w, size[1]))
        logits = logits + (rows[..., :, None] + columns[..., None, :]).flatten(5).flatten(3, 4)
        return logits.masked_fill(~seen[..., None, :], float("-inf")).softmax(-1)

    def attention_map(self, x: Tensor) -> Tensor:
        """(B, heads, N, N): a sample's weight, spread over the pixels that its value is read from."""
        height, width = x.shape[1:3]
        size = self.layout(height, width)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        points = self.points(x, size)
        inside, alone = visible(points, height, width)
        weights = self.weights(self.split(q, size), self.read(k, v, points)[0], inside | alone, size)
        read_x, read_y = points[:, :, -1].unbind(-1)  # of the values
        shares = hats(read_y, height)[..., :, None] * hats(read_x, width)[..., None, :]
        dense = merge(weights.to(shares.dtype) @ shares.flatten(-2), size, height, width).flatten(2, 3)
        alone = merge(alone[..., None].expand(*weights.shape[:-1], 1), size, height, width).flatten(2, 3)
        return torch.where(alone, torch.eye(height * width, dtype=dense.dtype, device=x.device), dense)

    def flops(self, height: int, width: int) -> int:
        """Every query with every sample of its window; reading and averaging, no products of matrices, left out."""
        size = self.layout(height, width)
        windows = -(-height // size[0]) * -(-width // size[1])
        tables = 2 * self.dim * height * width * (size[0] + size[1])
        return super().flops(height, width) + tables + 2 * windows * self.dim * self.sampling.out_features

    def pairs(self, height: int, width: int) -> int:
        size = self.layout(height, width)
        return height * width * size[0] * size[1]


def visible(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which samples lie on the map's pixels, (B, heads, windows, slots), and which windows have none, (..., 1)."""
    x, y = points.detach().unbind(-1)
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    inside = inside.all(2)  # a value whose key was read outside has no weight, nor a key without a value
    return inside, ~inside.any(-1, keepdim=True)


def merge(x: Tensor, size: tuple[int, int], height: int, width: int) -> Tensor:
    """(B, heads, windows, slots, D) -> (B, heads, H, W, D)."""
    x = x.unflatten(3, size).unflatten(2, (-(-height // size[0]), -1))  # (B, heads, rows, columns, wh, ww, D)
    return x.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :height, :width]


def relative(table: Tensor, size: int) -> Tensor:
    """(2 window - 1, head_dim) -> (size, size, head_dim), the row of query - key; size <= window."""
    place = torch.arange(size, device=table.device)
    index = place[:, None] - place + len(table) // 2
    return table.index_select(0, index.flatten()).unflatten(0, (size, size))


def hats(places: Tensor, length: int) -> Tensor:
    """(...) -> (..., length): the shares of the pixels of an axis in a value read at a place."""
    pixels = torch.arange(length, device=places.device)
    return (1 - (places.clamp(0, length - 1)[..., None] - pixels).abs()).clamp(min=0)

"""Agent attention: a few pooled queries gather the values, then every query reads from them; linear in N.

Paper: Agent Attention: On the Integration of Softmax and Linear Attention (Han et al., 2023), arXiv:2312.08874
    A = q averaged to n = p x p agents (adaptive average pool of the map)                       (n, d) per head
    V_a = softmax(A k^T / sqrt(d) + B1) v                                                       (n, d)
    out = softmax(q A^T / sqrt(d) + B2) V_a + DWConv3x3(v), then a linear projection            (N, d)
    B1 (n, N) = bilinear upsample of a 7x7 table per head and agent + a table over rows + one over columns;
    B2 (N, n) is built the same way from tables of its own
Cost: 8 N n dim + 18 N dim beside the projections' 8 N dim^2; memory O(N n) per head.
Weights are named and shaped as in the release (LeapLabTHU/Agent-Attention): qkv, proj, dwc, {an,na,ah,aw,ha,wa}_bias.

Departs from the release:
- Its row and column tables have the length of one resolution's map. Here they have `table_size` entries (14, as in
  Agent-DeiT at 224 px) and are interpolated linearly to the map, as the bilinear tables are.
- The scalars for a class token are left out: a map has none.
- On a map with a side below p the adaptive pool repeats pixels, so that n is the same at every size.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.attention.base import Attention, pair
from vantage.position.base import Position

BIAS_SIZE = 7  # side of the tables that are upsampled along both axes, whatever the map


class Agent(Attention):
    cost = "8*N*dim^2 + 8*N*agent_num*dim + 18*N*dim"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        agent_num: int = 49,
        table_size: int | Sequence[int] = 14,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        super().__init__(dim, num_heads, position=position)
        if not isinstance(agent_num, int) or agent_num < 1 or math.isqrt(agent_num) ** 2 != agent_num:
            raise ValueError(
                f"agent: agent_num {agent_num!r} is not a square; the agents are a p x p pool of the queries, "
                "so use 9, 16, 25, 36 or 49"
            )
        self.agent_num = agent_num
        self.pool_size = math.isqrt(agent_num)
        self.table_size = grid = pair(table_size, "attention.table_size")

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.dwc = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)

        # a: agents, n: tokens, h: rows, w: columns; the order is that of the logits they are added to
        self.an_bias = nn.Parameter(torch.empty(num_heads, agent_num, BIAS_SIZE, BIAS_SIZE))
        self.ah_bias = nn.Parameter(torch.empty(1, num_heads, agent_num, grid[0], 1))
        self.aw_bias = nn.Parameter(torch.empty(1, num_heads, agent_num, 1, grid[1]))
        self.na_bias = nn.Parameter(torch.empty(num_heads, agent_num, BIAS_SIZE, BIAS_SIZE))
        self.ha_bias = nn.Parameter(torch.empty(1, num_heads, grid[0], 1, agent_num))
        self.wa_bias = nn.Parameter(torch.empty(1, num_heads, 1, grid[1], agent_num))
        for table in (self.an_bias, self.ah_bias, self.aw_bias, self.na_bias, self.ha_bias, self.wa_bias):
            nn.init.trunc_normal_(table, std=0.02)

    def extra_repr(self) -> str:
        return f"agent_num={self.agent_num}, table_size={self.table_size}"

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        gather, read = self.weights(q, k)
        gathered = self.attn_drop(gather).to(v.dtype) @ self.split_heads(v)  # (B, heads, n, head_dim)
        out = self.attn_drop(read).to(v.dtype) @ gathered  # (B, heads, N, head_dim)
        out = out.transpose(1, 2).reshape(batch, height, width, dim)
        local = self.dwc(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj_drop(self.proj(out + local))

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, heads, N, head_dim)."""
        return x.view(x.shape[0], -1, self.num_heads, self.head_dim).transpose(1, 2)

    def weights(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The agents' weights over tokens (B, heads, n, N) and the tokens' over agents (B, heads, N, n), of maps."""
        batch, height, width, _ = q.shape
        agents = F.adaptive_avg_pool2d(q.permute(0, 3, 1, 2), self.pool_size) * self.head_dim**-0.5
        agents = agents.reshape(batch, self.num_heads, self.head_dim, self.agent_num)
        gather = agents.transpose(-2, -1) @ self.split_heads(k).transpose(-2, -1)
        read = self.split_heads(q) @ agents
        full = torch.promote_types(q.dtype, torch.float32)
        gather = gather.to(full).add_(self.gather_bias(height, width)).softmax(dim=-1)
        return gather, read.to(full).add_(self.read_bias(height, width)).softmax(dim=-1)

    def gather_bias(self, height: int, width: int) -> Tensor:
        """B1, (heads, n, N)."""
        rows = F.interpolate(self.ah_bias[0, :, :, :, 0], size=height, mode="linear")
        columns = F.interpolate(self.aw_bias[0, :, :, 0], size=width, mode="linear")
        both = F.interpolate(self.an_bias, size=(height, width), mode="bilinear")
        return (both + (rows[..., None] + columns[..., None, :])).flatten(2)

    def read_bias(self, height: int, width: int) -> Tensor:
        """B2, (heads, N, n)."""
        rows = F.interpolate(self.ha_bias[0, :, :, 0].transpose(1, 2), size=height, mode="linear")
        columns = F.interpolate(self.wa_bias[0, :, 0].transpose(1, 2), size=width, mode="linear")
        # interpolated with the agents innermost, as the logits have them: a transposed copy of (N, n) is slow
        both = F.interpolate(
            self.na_bias.contiguous(memory_format=torch.channels_last), size=(height, width), mode="bilinear"
        )
        return (both + (rows[..., None] + columns[..., None, :])).permute(0, 2, 3, 1).flatten(1, 2)

    def attention_map(self, x: Tensor) -> Tensor:
        """The product of the two softmaxes; the depthwise convolution of v is beside it."""
        gather, read = self.weights(*self.qkv(x).chunk(3, dim=-1)[:2])
        return read @ gather

    def flops(self, height: int, width: int) -> int:
        tokens, dim = height * width, self.dim
        return 8 * tokens * dim**2 + 8 * tokens * self.agent_num * dim + 18 * tokens * dim

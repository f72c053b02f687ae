"""Token aggregation: tokens are sorted by content and cut into groups that attend to themselves and to shared centres.

Paper: CATANet: Efficient Content-Aware Token Aggregation for Lightweight Image Super-Resolution (Liu et al., 2025),
arXiv:2503.06896
    label_i = argmax_m cos(x_i, c_m), m < M;  s = the N tokens sorted by label, stably, in groups of S = group_size
    out_g = softmax(Q_g [K_g, K_g+1]^T / sqrt(d)) [V_g, V_g+1] + softmax(Q_g K_c^T / sqrt(d)) V_c      (S, d) per head
    out = conv1x1(proj(out, each token back at its place))                                             (N, dim)
Q, K, V are linear in x, K_c and V_c (M, .) in the centres c. Past its end the sequence runs backwards: s_{N+i} =
s_{N-1-i}. A map of one group attends to itself alone, which is softmax attention.
    training: n_iter times c_m <- unit(sum of unit(x_i) with label m), over the whole batch; then means <- ema(means, c)
    else: c = means
A centre without tokens stays. Gradients pass through the last of those steps and through no label. The first batch
starts the centres, from the averages of M contiguous stretches of its tokens.
Cost: O(N dim^2 + N S dim + N M dim) time, in training n_iter times 2 N M dim more; O(N S) memory per head at most.

Images of a batch share centres in training and do not see each other otherwise. A group gathers from the whole map, so
a tile has other neighbours than its picture. State: `means` (M, dim) and `initted`, whether a batch has set them; both
are in the state dict, named as are all weights in the release (EquationWalker/CATANet).
Checkpointed activations would be recomputed with centres that have moved on: do not checkpoint this module.

Departs from the release:
- Sums are added over the processes of a distributed training, with their gradient: all have the centres that one
  process with all the images has. There each has its own, and rank 0's overwrite the others'.
- Sorting is stable, so that equal labels keep the order of the map on any device.
- Before any training the centres are random directions; there they come from the batch that is evaluated.
- Maps of more than one group and less than one and a half, and those of fewer tokens than centres, fail there: the
  reversed tail is too short. Here it turns round again.
- A token of length zero has no direction, nor a gradient through it (there 1e12 times what comes in).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from vantage.attention.base import Attention
from vantage.ops.constants import cached_constant
from vantage.ops.grouped_attention import grouped_attention
from vantage.position.base import Position

SHORTEST = 1e-6  # length below which a vector has no direction; tokens come out of a normalisation


class TokenAggregation(Attention):
    needs_grid = False
    cost = "10*N*dim^2 + 8*N*group_size*dim + 6*N*num_centres*dim"
    learns_in_forward = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_centres: int = 16,
        group_size: int = 256,
        qk_dim: int | None = None,
        n_iter: int = 5,
        ema_decay: float = 0.999,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
    ):
        """qk_dim: channels of queries and keys over all heads; None is dim (CATANet has 36 of 40)."""
        super().__init__(dim, num_heads, position=position)
        for name, value in (("num_centres", num_centres), ("group_size", group_size), ("n_iter", n_iter)):
            if value < 1:
                raise ValueError(f"token_aggregation: attention.{name}={value}; use 1 or more")
        self.qk_dim = dim if qk_dim is None else qk_dim
        if self.qk_dim < 1 or self.qk_dim % num_heads:
            raise ValueError(f"token_aggregation: attention.qk_dim={qk_dim} is not a multiple of num_heads {num_heads}")
        self.num_centres = num_centres
        self.group_size = group_size
        self.n_iter = n_iter
        self.ema_decay = ema_decay
        self.attn_drop = attn_drop
        self.iasa_attn = nn.ModuleDict(  # the paper's intra-group self-attention
            {
                "to_q": nn.Linear(dim, self.qk_dim, bias=qkv_bias),
                "to_k": nn.Linear(dim, self.qk_dim, bias=qkv_bias),
                "to_v": nn.Linear(dim, dim, bias=qkv_bias),
                "proj": nn.Linear(dim, dim, bias=False),
            }
        )
        self.irca_attn = nn.ModuleDict(  # and its inter-group cross-attention
            {
                "to_k": nn.Linear(dim, self.qk_dim, bias=qkv_bias),
                "to_v": nn.Linear(dim, dim, bias=qkv_bias),
            }
        )
        self.conv1x1 = nn.Conv2d(dim, dim, 1, bias=False)
        self.proj_drop = nn.Dropout(proj_drop)
        self.register_buffer("means", F.normalize(torch.randn(num_centres, dim), dim=-1))
        self.register_buffer("initted", torch.tensor(False))

    def extra_repr(self) -> str:
        return f"num_centres={self.num_centres}, group_size={self.group_size}, qk_dim={self.qk_dim}"

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)  # (B, N, C)
        centres, labels = self.aggregate(tokens)
        order = labels.argsort(dim=1, stable=True)
        mixed = self.mix(tokens, order, centres.to(x.dtype))
        mixed = torch.zeros_like(mixed).scatter(1, order[..., None].expand_as(mixed), mixed)
        out = self.iasa_attn["proj"](mixed).view(x.shape)
        return self.proj_drop(self.conv1x1(out.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))

    def aggregate(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, N, C) -> centres (M, C) that keys and values are made of, and every token's label (B, N)."""
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        with torch.autocast(tokens.device.type, enabled=False):  # a label is a step: no rounding before it
            directions = unit(tokens)
            centres = self.refine(tokens, directions) if self.training else self.means.to(tokens.dtype)
            return centres, nearest(directions, unit(centres))

    def refine(self, tokens: Tensor, directions: Tensor) -> Tensor:
        """The centres (M, C) after n_iter steps of spherical k-means on this batch; moves `means` towards them."""
        with torch.no_grad():
            means = self.means.to(tokens.dtype)
            # chosen without a branch: a graph cannot depend on a tensor's value, nor a GPU be asked for it for free
            centres = unit(torch.where(self.initted, means, stretches(tokens, self.num_centres)))
            for _ in range(self.n_iter - 1):
                centres = spherical_means(directions, centres)
        centres = spherical_means(directions, centres)
        with torch.no_grad():
            self.means.copy_(torch.where(self.initted, torch.lerp(centres, means, self.ema_decay), centres))
            self.initted.fill_(True)
        return centres

    def mix(self, tokens: Tensor, order: Tensor, centres: Tensor) -> Tensor:
        """tokens (B, N, C), their order (B, N), centres (M, C) -> both attentions' sum (B, N, C), in that order."""
        size, groups = self.layout(tokens.shape[1])
        slots = size * groups
        turned = slots if groups == 1 else slots + size  # the last of several groups has a successor too
        order = order.index_select(1, reflection(turned, tokens.shape[1], order.device))
        q = self.split(self.iasa_attn["to_q"](tokens), order[:, :slots], size)
        k, v = (self.split(self.iasa_attn[name](tokens), order, size) for name in ("to_k", "to_v"))
        if groups > 1:
            k, v = (torch.cat((t[:, :, :-1], t[:, :, 1:]), dim=3) for t in (k, v))  # (B, heads, groups, 2 size, d)
        drop = self.attn_drop if self.training else 0.0
        own = grouped_attention(q, k, v, dropout_p=drop).flatten(2, 3)  # (B, heads, slots, d)
        k, v = (self.irca_attn[name](centres).unflatten(-1, (self.num_heads, -1)) for name in ("to_k", "to_v"))
        k, v = (t.transpose(0, 1).expand(len(tokens), -1, -1, -1) for t in (k, v))  # (B, heads, M, d)
        shared = F.scaled_dot_product_attention(q.flatten(2, 3), k, v, dropout_p=drop)
        return (own + shared)[:, :, : tokens.shape[1]].transpose(1, 2).flatten(2)

    def split(self, x: Tensor, order: Tensor, size: int) -> Tensor:
        """(B, N, C) -> (B, heads, groups, size, head_dim), the groups being cut from x in this order."""
        x = x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))
        return x.unflatten(1, (-1, size)).unflatten(-1, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)

    def layout(self, tokens: int) -> tuple[int, int]:
        """Size and number of the groups of so many tokens."""
        size = min(self.group_size, tokens)
        return size, -(-tokens // size)

    def flops(self, height: int, width: int) -> int:
        """In the mode the module is in: training has n_iter steps of k-means besides."""
        tokens, both = height * width, self.qk_dim + self.dim
        size, groups = self.layout(tokens)
        keys = size if groups == 1 else 2 * size
        linear = 2 * tokens * self.dim * (both + self.qk_dim + 2 * self.dim) + 2 * self.num_centres * self.dim * both
        attention = 2 * size * groups * (keys + self.num_centres) * both
        searches = 1 + (self.n_iter if self.training else 0)
        return linear + attention + 2 * searches * tokens * self.num_centres * self.dim


def unit(x: Tensor, otherwise: Tensor | float = 0.0) -> Tensor:
    """x / |x| along the last axis; `otherwise` where x is zero."""
    length = x.norm(dim=-1, keepdim=True)
    return torch.where(length > SHORTEST, x / length.clamp(min=SHORTEST), otherwise)


def nearest(directions: Tensor, centres: Tensor) -> Tensor:
    """(B, N, C), (M, C) of unit length -> the centre (B, N) with the largest cosine, the first of equals."""
    return (directions.detach() @ centres.detach().T).argmax(dim=-1)


def spherical_means(directions: Tensor, centres: Tensor) -> Tensor:
    """One step of k-means on the sphere: (B, N, C), (M, C) of unit length -> (M, C) of unit length."""
    labels = nearest(directions, centres).flatten()
    sums = torch.zeros_like(centres).index_add(0, labels, directions.flatten(0, 1))
    return unit(sum_over_processes(sums), otherwise=centres)  # no tokens, no sum: their number is not needed


def stretches(tokens: Tensor, count: int) -> Tensor:
    """(B, N, C) -> (count, C): sums, which point where averages do, over stretches of floor(N / count) + 1 tokens."""
    length = tokens.shape[1] // count + 1
    index = reflection(length * count, tokens.shape[1], tokens.device)
    return sum_over_processes(tokens.sum(0).index_select(0, index).unflatten(0, (count, length)).sum(1))


@cached_constant
def reflection(count: int, length: int, device: torch.device) -> Tensor:
    """(count): 0, 1, ..., length - 1, length - 1, ..., 1, 0, 0, 1, ..."""
    place = torch.arange(count, device=device) % (2 * length)
    return torch.minimum(place, 2 * length - 1 - place)


def sum_over_processes(x: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        return SumOverProcesses.apply(x)
    return x


class SumOverProcesses(torch.autograd.Function):
    """The sum has a part in the loss of every process, and so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return SumOverProcesses.apply(gradient)

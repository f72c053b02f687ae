"""The definition: gather every query's keys, softmax over them. Slow, O(N * kernel * dim) memory, any float dtype."""

import torch
from torch import Tensor

from vantage.ops.constants import cached_constant
from vantage.ops.neighborhood_attention.windows import Axis, flat_positions, outer, window_bounds


@cached_constant
def neighbors(axes: tuple[Axis, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K) each: flat key index, whether it counts (causal windows are shorter), flat index in the bias table."""
    keys, valid, offsets = [], [], []
    for axis in axes:
        query = torch.arange(axis.length, device=device)[:, None]
        first, last = window_bounds(axis, query)
        key = first + axis.dilation * torch.arange(axis.kernel, device=device)  # (L, k)
        valid.append(key <= last)
        key = torch.minimum(key, last)
        keys.append(key)
        offsets.append((key - query) // axis.dilation + axis.kernel - 1)
    lengths = tuple(axis.length for axis in axes)
    spans = tuple(2 * axis.kernel - 1 for axis in axes)
    return flat_positions(lengths, *keys), outer(torch.logical_and, *valid), flat_positions(spans, *offsets)


def unavailable(q: Tensor, axes: tuple[Axis, ...]) -> None:
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, axes: tuple[Axis, ...], scale: float, bias: Tensor | None, return_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """q, k, v (B, *lengths, heads, d), bias (heads, *(2 * kernel - 1)) or None
    -> out (B, *lengths, heads, d) and, if asked for, lse (B, *lengths, heads) of at least float32."""
    key_index, is_key, bias_index = neighbors(axes, q.device)
    q, k, v = (t.flatten(1, len(axes)) for t in (q, k, v))  # (B, N, heads, d)
    logits = torch.einsum("bnhd,bnkhd->bhnk", q * scale, k[:, key_index])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias.flatten(1)[:, bias_index].to(logits.dtype)
    logits = logits.masked_fill(~is_key, float("-inf"))
    out = torch.einsum("bhnk,bnkhd->bnhd", logits.softmax(-1).to(v.dtype), v[:, key_index])
    lengths = tuple(axis.length for axis in axes)
    lse = logits.logsumexp(-1).transpose(1, 2).unflatten(1, lengths) if return_lse else None  # (B, *lengths, heads)
    return out.unflatten(1, lengths), lse

"""Portable backend in plain PyTorch: dense masked attention on small maps, halo tiles on large ones.

Halo tiles: queries are cut into boxes; a box and the union of its windows (box + kernel - 1 keys per axis, shifted
to stay inside the map) is one small masked attention, so that the work is near N * kernel instead of N^2.
Dilation: along a dilated axis a tile lives in one residue class. Both paths are exact and differentiable.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vantage.ops.constants import cached_constant
from vantage.ops.grouped_attention import grouped_attention
from vantage.ops.neighborhood_attention.windows import Axis, flat_positions, outer, window_bounds

TILE = 8  # queries of a tile along an axis, at most
GATHER_COST = 2.0  # a tile must save this factor in scores to pay for gathering its keys


class Tiling(NamedTuple):
    """How an axis is cut: each residue class into `per_class` tiles of `queries` queries that see `keys` keys."""

    per_class: int
    queries: int
    keys: int


def tiling_of(axis: Axis) -> Tiling:
    class_length = -(-axis.length // axis.dilation)  # of the longest class
    per_class = -(-class_length // TILE)
    queries = -(-class_length // per_class)
    per_class = -(-class_length // queries)
    # window starts move no faster than the leaders of stride groups: by queries + stride - 2 over a tile
    return Tiling(per_class, queries, min(class_length, queries + axis.kernel + axis.stride - 2))


def prefers_dense(axes: tuple[Axis, ...]) -> bool:
    """Whether one masked attention over the whole map beats tiles: they compute fewer scores but gather their keys."""
    dense, tiled = 1, 1
    for axis in axes:
        tiling = tiling_of(axis)
        dense *= axis.length**2
        tiled *= axis.dilation * tiling.per_class * tiling.queries * tiling.keys
    return dense < GATHER_COST * tiled


@cached_constant
def dense_mask(axes: tuple[Axis, ...], device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """(1, 1, N, N) additive mask, or None where every query sees every key."""
    if all(axis.kernel == axis.length and not axis.is_causal for axis in axes):
        return None
    allowed = []
    for axis in axes:
        position = torch.arange(axis.length, device=device)
        first, last = window_bounds(axis, position[:, None])
        allowed.append((position >= first) & (position <= last) & ((position - first) % axis.dilation == 0))
    return additive(outer(torch.logical_and, *allowed), dtype)[None, None]


@cached_constant
def dense_offsets(axes: tuple[Axis, ...], device: torch.device) -> Tensor:
    """(N, N) flat index in the bias table of key - query; meaningless where the key is not in the window."""
    offsets = []
    for axis in axes:
        position = torch.arange(axis.length, device=device)
        step = torch.div(position - position[:, None], axis.dilation, rounding_mode="floor")
        offsets.append((step + axis.kernel - 1).clamp(0, 2 * axis.kernel - 2))
    return flat_positions(tuple(2 * axis.kernel - 1 for axis in axes), *offsets)


@cached_constant
def tile_plan(
    axes: tuple[Axis, ...], tilings: tuple[Tiling, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Flat query (T, Q) and key (T, K) positions, mask and bias index (T, Q, K), slot (N) of a token in T * Q."""
    plans = [plan_axis(axis, tiling, device) for axis, tiling in zip(axes, tilings)]
    query, key, is_key, offset, slot_tile, slot_query = zip(*plans)
    lengths = tuple(axis.length for axis in axes)
    tiles = tuple(axis.dilation * tiling.per_class for axis, tiling in zip(axes, tilings))
    queries = tuple(tiling.queries for tiling in tilings)
    slot = flat_positions(tiles, *slot_tile) * math.prod(queries) + flat_positions(queries, *slot_query)
    spans = tuple(2 * axis.kernel - 1 for axis in axes)
    mask = additive(outer(torch.logical_and, *is_key), dtype)
    return flat_positions(lengths, *query), flat_positions(lengths, *key), mask, flat_positions(spans, *offset), slot


def plan_axis(axis: Axis, tiling: Tiling, device: torch.device) -> tuple[Tensor, ...]:
    """Of an axis: query (T, tq) and key (T, tk) positions, is_key, offset (T, tq, tk), tile and query of each token."""
    dilation = axis.dilation
    tile = torch.arange(dilation * tiling.per_class, device=device)[:, None]
    residue, ordinal = tile // tiling.per_class, tile % tiling.per_class
    last_of_class = (axis.length - 1 - residue) // dilation
    # the last tile of a class may reach past its end: it repeats a query, and nobody reads the copies
    query = ordinal * tiling.queries + torch.arange(tiling.queries, device=device)
    query = torch.minimum(query, last_of_class) * dilation + residue
    first, last = window_bounds(axis, query)
    start = torch.minimum(first[:, :1] // dilation, (last_of_class + 1 - tiling.keys).clamp(min=0))
    within = start + torch.arange(tiling.keys, device=device)
    key = torch.minimum(within, last_of_class) * dilation + residue
    is_key = (key[:, None] >= first[:, :, None]) & (key[:, None] <= last[:, :, None])
    is_key = is_key & (within <= last_of_class)[:, None]
    offset = (key[:, None] - query[:, :, None]) // dilation + axis.kernel - 1
    token = torch.arange(axis.length, device=device)
    slot_tile = token % dilation * tiling.per_class + token // dilation // tiling.queries
    return query, key, is_key, offset.clamp(0, 2 * axis.kernel - 2), slot_tile, token // dilation % tiling.queries


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, float("-inf"))


def biased(mask: Tensor | None, bias: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """bias (heads, table) looked up at index (..., Q, K), plus the mask -> (heads, ..., Q, K)."""
    looked_up = bias.to(dtype).index_select(1, index.flatten()).unflatten(1, index.shape)
    return looked_up if mask is None else looked_up + mask


def unavailable(q: Tensor, axes: tuple[Axis, ...]) -> None:
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, axes: tuple[Axis, ...], scale: float, bias: Tensor | None, return_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """q, k, v (B, *lengths, heads, d), bias (heads, *(2 * kernel - 1)) or None
    -> out (B, *lengths, heads, d) and, if asked for, lse (B, *lengths, heads) of at least float32."""
    lengths = q.shape[1:-2]
    q, k, v = (t.flatten(1, len(axes)).transpose(1, 2) for t in (q, k, v))  # (B, heads, N, d)
    bias = None if bias is None else bias.flatten(1)
    path = dense if prefers_dense(axes) else halo
    out, lse = path(q, k, v, axes, scale, bias, return_lse)
    return tuple(t if t is None else t.transpose(1, 2).unflatten(1, lengths) for t in (out, lse))


def dense(q, k, v, axes: tuple[Axis, ...], scale: float, bias: Tensor | None, return_lse: bool):
    """-> out (B, heads, N, d), lse (B, heads, N) or None."""
    dtype = logits_dtype(q, return_lse)
    mask = dense_mask(axes, q.device, dtype)
    if bias is not None:
        mask = biased(None if mask is None else mask[0], bias, dense_offsets(axes, q.device), dtype)[:, None]
    q, k, v = (t[:, :, None] for t in (q, k, v))  # one group: (B, heads, 1, N, d)
    out, lse = masked_attention(q, k, v, mask, scale, return_lse)
    return out[:, :, 0], None if lse is None else lse[:, :, 0]


def halo(q, k, v, axes: tuple[Axis, ...], scale: float, bias: Tensor | None, return_lse: bool):
    """As dense."""
    dtype = logits_dtype(q, return_lse)
    query, key, mask, bias_index, slot = tile_plan(axes, tuple(map(tiling_of, axes)), q.device, dtype)
    q = q.index_select(2, query.flatten()).unflatten(2, query.shape)  # (B, heads, T, Q, d)
    k, v = (t.index_select(2, key.flatten()).unflatten(2, key.shape) for t in (k, v))
    mask = mask[None] if bias is None else biased(mask, bias, bias_index, dtype)  # (heads or 1, T, Q, K)
    out, lse = masked_attention(q, k, v, mask, scale, return_lse)
    return tuple(t if t is None else t.flatten(2, 3).index_select(2, slot) for t in (out, lse))  # (B, heads, N, ...)


def logits_dtype(q: Tensor, return_lse: bool) -> torch.dtype:
    """Of the mask: fused kernels want q's; where the scores are held they are at least float32."""
    return torch.promote_types(q.dtype, torch.float32) if return_lse else q.dtype


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, return_lse: bool):
    """q (B, heads, groups, Q, d) -> out like q, lse (B, heads, groups, Q). lse holds the scores: no fused kernel of
    PyTorch returns it, differentiable, on every device."""
    if not return_lse:
        return grouped_attention(q, k, v, mask, scale=scale), None
    dtype = logits_dtype(q, return_lse)
    logits = q.to(dtype) * scale @ k.to(dtype).transpose(-2, -1)
    logits = logits if mask is None else logits + mask
    return logits.softmax(-1).to(v.dtype) @ v, logits.logsumexp(-1)

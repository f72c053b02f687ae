"""FlexAttention with the exact window as its mask: for GPUs, and as a peer to measure against.

It runs compiled on a GPU, where whole blocks of 128 x 128 pairs that no window touches are skipped, and eagerly on a
CPU, forward only, because PyTorch refuses FlexAttention's backward there. The block mask of a map is built once.
"""

import functools
import importlib.util
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from vantage.ops.constants import is_plain
from vantage.ops.neighborhood_attention.windows import Axis, window_bounds

MAX_CACHED = 32  # block masks, least recently used first out
BLOCK_MASKS: OrderedDict[tuple, BlockMask] = OrderedDict()


def unavailable(q: Tensor, axes: tuple[Axis, ...]) -> str | None:
    if q.device.type == "cpu":
        return None
    if q.device.type != "cuda":
        return f"FlexAttention runs on cpu and cuda, and q is on {q.device.type}; use backend='tiled'"
    if importlib.util.find_spec("triton") is None:
        return "FlexAttention on a GPU is compiled with Triton, which is not installed; pip install triton"
    if q.dtype == torch.float64:
        return "compiled FlexAttention takes no float64; use backend='reference' or 'tiled'"
    if q.shape[-1] < 16:
        return f"compiled FlexAttention takes a head_dim of at least 16, not {q.shape[-1]}; use backend='tiled'"
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, axes: tuple[Axis, ...], scale: float, bias: Tensor | None, return_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """As reference.attend. Raises RuntimeError on a CPU where a gradient is required."""
    if q.device.type == "cpu":
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (q, k, v, bias)):
            raise RuntimeError(
                "neighborhood_attention: backend='flex' has no backward on a CPU, PyTorch refuses it; "
                "use backend='native' or 'tiled', or torch.no_grad()"
            )
        q, k, v = q.detach(), k.detach(), v.detach()  # PyTorch asks for it even where no gradient is recorded
    lengths = q.shape[1:-2]
    q, k, v = (t.flatten(1, len(axes)).transpose(1, 2) for t in (q, k, v))  # (B, heads, N, d)
    out, aux = flex_function(q.device.type)(
        q,
        k,
        v,
        score_mod=None if bias is None else biased_score(axes, bias.flatten(1)),
        block_mask=block_mask(axes, q.device),
        scale=scale,
        return_aux=AuxRequest(lse=return_lse),
    )
    out = out.transpose(1, 2).unflatten(1, lengths)
    return out, aux.lse.transpose(1, 2).unflatten(1, lengths) if return_lse else None


def flex_function(device_type: str) -> Callable:
    if torch.compiler.is_compiling():
        return flex_attention
    return compiled_flex_attention() if device_type == "cuda" else eager_flex_attention


@functools.cache
def compiled_flex_attention() -> Callable:
    return torch.compile(flex_attention, dynamic=False)


def eager_flex_attention(*args, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return flex_attention(*args, **options)


def block_mask(axes: tuple[Axis, ...], device: torch.device) -> BlockMask:
    key = (axes, device)
    if torch.compiler.is_compiling():
        return build_block_mask(axes, device)
    if key in BLOCK_MASKS:
        BLOCK_MASKS.move_to_end(key)
        return BLOCK_MASKS[key]
    with torch.inference_mode(False):  # a tensor born in inference mode could not be saved for backward
        mask = build_block_mask(axes, device)
    if is_plain(mask.kv_indices):
        BLOCK_MASKS[key] = mask
        if len(BLOCK_MASKS) > MAX_CACHED:
            BLOCK_MASKS.popitem(last=False)
    return mask


def build_block_mask(axes: tuple[Axis, ...], device: torch.device) -> BlockMask:
    tokens = math.prod([axis.length for axis in axes])
    return create_block_mask(in_window(axes), None, None, tokens, tokens, device)


def coordinates(axes: tuple[Axis, ...], flat: Tensor) -> list[Tensor]:
    """Position on every axis of a row-major index."""
    positions = []
    for axis in reversed(axes):
        positions.append(flat % axis.length)
        flat = flat // axis.length
    return positions[::-1]


def in_window(axes: tuple[Axis, ...]) -> Callable:
    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = None
        for axis, i, j in zip(axes, coordinates(axes, query), coordinates(axes, key)):
            first, last = window_bounds(axis, i)
            inside = (j >= first) & (j <= last) & (j % axis.dilation == i % axis.dilation)
            allowed = inside if allowed is None else allowed & inside
        return allowed

    return mask_mod


def biased_score(axes: tuple[Axis, ...], bias: Tensor) -> Callable:
    """bias (heads, table)."""

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        index = 0
        for axis, i, j in zip(axes, coordinates(axes, query), coordinates(axes, key)):
            # classes differ where the key is outside of the window: any entry will do
            offset = (j // axis.dilation - i // axis.dilation + axis.kernel - 1).clamp(0, 2 * axis.kernel - 2)
            index = index * (2 * axis.kernel - 1) + offset
        return score + bias[head, index]

    return score_mod

"""What a call may look like: every refusal of the op is a sentence that names the value and what would fit.

A call on a small map takes microseconds, so that what was found to fit is kept: only new windows are checked in full.
"""

import functools
from collections.abc import Sequence
from operator import index

import torch
from torch import Tensor

from vantage.ops.neighborhood_attention.windows import Axis

NAME = "neighborhood_attention"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_arguments(
    q: Tensor, k: Tensor, v: Tensor, kernel_size, dilation, stride, is_causal, bias: Tensor | None
) -> tuple[Axis, ...]:
    """The axes of a call; raises ValueError for what does not fit together."""
    shape = q.shape
    if not 4 <= len(shape) <= 6:
        raise ValueError(f"{NAME}: q has shape {tuple(shape)}; use (B, *lengths, heads, head_dim) with 1 to 3 lengths")
    if k.shape != shape or v.shape != shape:
        raise ValueError(
            f"{NAME}: q {tuple(shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} differ; give them one shape"
        )
    dtype, device = q.dtype, q.device
    if k.dtype != dtype or v.dtype != dtype or dtype not in DTYPES:
        raise ValueError(
            f"{NAME}: q is {dtype}, k {k.dtype} and v {v.dtype}; give them one floating dtype (16 to 64 bits)"
        )
    if k.device != device or v.device != device:
        raise ValueError(f"{NAME}: q is on {device}, k on {k.device} and v on {v.device}; move them to one device")
    if 0 in shape[1:]:
        raise ValueError(f"{NAME}: q has shape {tuple(shape)}; every size but the batch must be at least 1")
    count = len(shape) - 3
    windows = (
        per_axis(kernel_size, count, "kernel_size"),
        per_axis(dilation, count, "dilation"),
        per_axis(stride, count, "stride"),
        per_axis(is_causal, count, "is_causal", bool),
    )
    lengths = shape[1:-2]
    if torch.compiler.is_compiling():  # a graph is for one map
        axes = fitting_axes(*(tuple(map(index, values)) for values in (lengths, *windows)))
    else:
        axes = cached_fitting_axes(lengths, *windows)
    if bias is not None:
        check_bias(bias, shape[-2], axes, device)
    return axes


def compute_dtype(t: Tensor) -> torch.dtype:
    """t's dtype, or what autocast makes of it, as for a matrix product: float64 and what is no floating tensor stay."""
    if is_autocast(t) and t.is_floating_point() and t.dtype != torch.float64:
        return torch.get_autocast_dtype(t.device.type)
    return t.dtype


def is_autocast(t: Tensor) -> bool:
    return not t.is_meta and torch.is_autocast_enabled(t.device.type)


def check_bias(bias: Tensor, heads: int, axes: tuple[Axis, ...], device: torch.device) -> None:
    wanted = (heads, *(2 * axis.kernel - 1 for axis in axes))
    if tuple(bias.shape) != wanted:
        raise ValueError(f"{NAME}: bias has shape {tuple(bias.shape)}; use (heads, 2 * kernel - 1 per axis) = {wanted}")
    if bias.dtype not in DTYPES:
        raise ValueError(f"{NAME}: bias is {bias.dtype}; use a floating dtype (16 to 64 bits)")
    if bias.device != device:
        raise ValueError(f"{NAME}: bias is on {bias.device} and q on {device}; move them to one device")


def fitting_axes(lengths: Sequence[int], kernel_size, dilation, stride, is_causal) -> tuple[Axis, ...]:
    axes = tuple(map(Axis, lengths, kernel_size, dilation, stride, is_causal))
    for position, axis in enumerate(axes):
        where = f"axis {position} of length {axis.length}"
        if axis.kernel > axis.length:
            raise ValueError(f"{NAME}: kernel_size {axis.kernel} does not fit {where}; use at most {axis.length}")
        if axis.kernel * axis.dilation > axis.length:
            raise ValueError(
                f"{NAME}: kernel_size {axis.kernel} with dilation {axis.dilation} does not fit {where}; "
                f"use dilation <= {axis.length // axis.kernel}"
            )
        if axis.stride > axis.kernel:
            raise ValueError(
                f"{NAME}: stride {axis.stride} exceeds kernel_size {axis.kernel} of {where}; "
                f"use stride <= {axis.kernel}"
            )
    return axes


cached_fitting_axes = functools.lru_cache(maxsize=512)(fitting_axes)


def per_axis(value, count: int, name: str, kind: type = int) -> tuple:
    """One value per axis from one value for all or a sequence; raises ValueError on anything else."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * count
    # `type is`: True is no kernel size and 1 no is_causal, and equal keys of the cache above must mean the same
    if len(values) != count or any(type(item) is not kind or (kind is int and item < 1) for item in values):
        what = "booleans" if kind is bool else "positive integers"
        raise ValueError(f"{NAME}: {name}={value!r}; use one or {count} {what}")
    return values

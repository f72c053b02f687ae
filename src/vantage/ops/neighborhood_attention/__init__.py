"""Neighborhood attention: every query attends to the window of `kernel_size` keys nearest to it.

Papers: Neighborhood Attention Transformer (Hassani et al., 2022), arXiv:2204.07143; dilation: arXiv:2209.15001;
    strides and causal axes: Generalized Neighborhood Attention (2025), arXiv:2504.16922.
    out_i = sum_{j in window(i)} softmax_j(scale * q_i . k_j + bias[j - i]) v_j
Both backends are plain PyTorch, differentiated by autograd, so none needs to be a registered op.
`windows.py` states the border rule, `reference.py` is the definition, `tiled.py` the portable fast path.
"""

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from vantage.ops.neighborhood_attention import reference, tiled
from vantage.ops.neighborhood_attention.windows import Axis

BACKENDS = {"reference": lambda *args: reference.attend(*args)[0], "tiled": tiled.attend}

log = logging.getLogger(__name__)


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    scale: float | None = None,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Heads-last neighborhood attention over one, two or three axes, as in NATTEN.

    q, k, v: (B, *lengths, heads, head_dim), one floating dtype and device; returns the same shape and dtype.
    kernel_size, dilation, stride, is_causal: one value, or one per axis. Per axis of length L,
        kernel_size * dilation <= L and stride <= kernel_size. Without dilation and stride a query at i sees the keys
        start .. start + kernel_size - 1 with start = clamp(i - kernel_size // 2, 0, L - kernel_size): windows are
        shifted at the border, never shrunk. A dilated axis is `dilation` interleaved sequences. `stride` neighbouring
        queries share the window of their middle one. A causal axis sees at most kernel_size keys and none ahead.
    scale: of the logits, 1 / sqrt(head_dim) by default.
    bias: (heads, 2 * kernel - 1 per axis), added to the logit of query i and key j at index
        (j - i) / dilation + kernel - 1; differentiable.
    backend: "auto", or "reference" or "tiled", which never fall back to another.
    Raises ValueError for arguments that do not fit, naming what would.
    """
    axes = check_arguments(q, k, v, kernel_size, dilation, stride, is_causal, bias)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return BACKENDS[resolve_backend(backend, q)](q, k, v, axes, scale, bias)


def resolve_backend(backend: str, q: Tensor) -> str:
    """The backend that a call runs on: `auto` chooses by device and dtype, anything else is taken at its word."""
    if backend == "auto":
        if not torch.compiler.is_compiling():
            log_choice(q.device.type, q.dtype, "tiled")
        return "tiled"
    if backend not in BACKENDS:
        raise ValueError(
            f"neighborhood_attention: backend={backend!r} is unknown; use auto, {', '.join(sorted(BACKENDS))}"
        )
    return backend


@functools.lru_cache
def log_choice(device: str, dtype: torch.dtype, backend: str) -> None:
    log.info("neighborhood_attention: backend '%s' for %s on %s", backend, str(dtype).removeprefix("torch."), device)


def check_arguments(q, k, v, kernel_size, dilation, stride, is_causal, bias) -> tuple[Axis, ...]:
    name = "neighborhood_attention"
    if not 4 <= q.dim() <= 6:
        raise ValueError(
            f"{name}: q has shape {tuple(q.shape)}; use (B, *lengths, heads, head_dim) with 1 to 3 lengths"
        )
    if k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"{name}: q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} differ; give them one shape"
        )
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"{name}: q is {q.dtype}, k {k.dtype} and v {v.dtype}; give them one floating dtype")
    lengths = tuple(q.shape[1:-2])
    if 0 in q.shape:
        raise ValueError(f"{name}: q has shape {tuple(q.shape)}; every size must be at least 1")
    count = len(lengths)
    axes = tuple(
        Axis(length, *values)
        for length, *values in zip(
            lengths,
            per_axis(kernel_size, count, "kernel_size"),
            per_axis(dilation, count, "dilation"),
            per_axis(stride, count, "stride"),
            per_axis(is_causal, count, "is_causal", bool),
        )
    )
    for position, axis in enumerate(axes):
        where = f"axis {position} of length {axis.length}"
        if axis.kernel > axis.length:
            raise ValueError(f"{name}: kernel_size {axis.kernel} does not fit {where}; use at most {axis.length}")
        if axis.kernel * axis.dilation > axis.length:
            raise ValueError(
                f"{name}: kernel_size {axis.kernel} with dilation {axis.dilation} does not fit {where}; "
                f"use dilation <= {axis.length // axis.kernel}"
            )
        if axis.stride > axis.kernel:
            raise ValueError(f"{name}: stride {axis.stride} exceeds kernel_size {axis.kernel} of {where}")
    wanted = (q.shape[-2], *(2 * axis.kernel - 1 for axis in axes))
    if bias is not None and tuple(bias.shape) != wanted:
        raise ValueError(f"{name}: bias has shape {tuple(bias.shape)}; use (heads, 2 * kernel - 1 per axis) = {wanted}")
    return axes


def per_axis(value, count: int, name: str, kind: type = int) -> tuple:
    """One value per axis from one value for all or a sequence; raises ValueError on anything else."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * count
    wrong_kind = any(isinstance(item, bool) is not (kind is bool) or not isinstance(item, kind) for item in values)
    if len(values) != count or wrong_kind or (kind is int and min(values) < 1):
        what = "booleans" if kind is bool else "positive integers"
        raise ValueError(f"neighborhood_attention: {name}={value!r}; use one or {count} {what}")
    return values

"""Neighborhood attention: every query attends to the window of `kernel_size` keys nearest to it.

Papers: Neighborhood Attention Transformer (Hassani et al., 2022), arXiv:2204.07143; dilation: arXiv:2209.15001;
    strides and causal axes: Generalized Neighborhood Attention (2025), arXiv:2504.16922.
    out_i = sum_{j in window(i)} softmax_j(scale * q_i . k_j + bias[j - i]) v_j
`windows.py` states the border rule; `reference.py` is the definition; `tiled.py` is the portable fast path and
`flex.py` FlexAttention, both plain PyTorch; `native.py` (CPU), `triton.py` and `cuda.py` are registered ops, declared
in `registration.py`. `choose.py` has the rules of backend="auto".
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vantage.ops.neighborhood_attention import registration  # noqa: F401 defines the ops
from vantage.ops.neighborhood_attention.arguments import check_arguments, compute_dtype, is_autocast, per_axis
from vantage.ops.neighborhood_attention.dispatch import BACKENDS, call_backend, resolve_backend

__all__ = ["BACKENDS", "neighborhood_attention", "per_axis", "resolve_backend"]


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
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Heads-last neighborhood attention over one, two or three axes, as in NATTEN.

    q, k, v: (B, *lengths, heads, head_dim), one floating dtype and device; returns the same shape and dtype. Under
        torch.autocast they are cast to its dtype first. B may be 0.
    kernel_size, dilation, stride, is_causal: one value, or one per axis. Per axis of length L,
        kernel_size * dilation <= L and stride <= kernel_size. Without dilation and stride a query at i sees the keys
        start .. start + kernel_size - 1 with start = clamp(i - kernel_size // 2, 0, L - kernel_size): windows are
        shifted at the border, never shrunk. A dilated axis is `dilation` interleaved sequences. `stride` neighbouring
        queries share the window of their middle one. A causal axis sees at most kernel_size keys and none ahead.
    scale: of the logits, 1 / sqrt(head_dim) by default.
    bias: (heads, 2 * kernel - 1 per axis), any floating dtype, added to the logit of query i and key j at index
        (j - i) / dilation + kernel - 1; differentiable.
    return_lse: also return (B, *lengths, heads), the logarithm of the sum over a query's keys of exp(logit), float32
        (float64 for float64); differentiable.
    backend: "auto", or one of BACKENDS, which never falls back to another.
    Raises ValueError for arguments that do not fit, naming what would, and RuntimeError for a backend that cannot run
    here, saying what is missing.
    """
    if is_autocast(q):
        q, k, v = (t.to(compute_dtype(t)) for t in (q, k, v))
    axes = check_arguments(q, k, v, kernel_size, dilation, stride, is_causal, bias)
    name = resolve_backend(backend, q, axes)
    if q.shape[0] == 0:
        out, lse = nothing(q, k, v, bias)
    else:
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        out, lse = call_backend(name, q, k, v, axes, scale, bias, return_lse)
    return (out, lse) if return_lse else out


def nothing(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Results of an empty batch, with gradients: empty ones, and zeros for the bias."""
    out = q + k + v
    if bias is not None:
        out = out + bias.sum().to(out.dtype)
    return out, out.to(torch.promote_types(out.dtype, torch.float32)).sum(-1)

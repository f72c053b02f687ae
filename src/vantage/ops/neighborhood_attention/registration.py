"""The two registered ops of a compiled backend: schemas, fake kernels, autograd and vmap, the same for every backend.

`attend = define("triton")` defines `vantage::neighborhood_attention_triton` and its `_backward` (schemas below) and
returns the call of the first. A backend then attaches its kernels, in Python with
    torch.library.impl("vantage::neighborhood_attention_triton", "cuda")(forward)
    torch.library.impl("vantage::neighborhood_attention_triton_backward", "cuda")(backward)
or in C++ with STABLE_TORCH_LIBRARY_IMPL(vantage, CPU, m). What the kernels take and return:

    q, k, v, out, grad_out, grad_q, grad_k, grad_v    (B, *lengths, heads, head_dim); inputs of any strides
    lse, grad_lse    (B, *lengths, heads) float32: natural logarithm of the sum over keys of exp(logit)
    bias, grad_bias  (heads, 2 * kernel - 1 per axis), any floating dtype; without a bias grad_bias has shape (0,)

Outputs are contiguous, float32 for lse and else of the dtype of what they belong to. With logit_ij = scale q_i . k_j +
bias[j - i], P = exp(logit - lse) and delta_i = grad_out_i . out_i - grad_lse_i:
    dS = P * (grad_out_i . v_j - delta_i),   grad_q = scale dS K,   grad_k = scale dS^T Q,   grad_v = P^T grad_out,
    grad_bias[j - i] = sum of dS.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vantage.ops.neighborhood_attention.windows import Axis, count_pairs

LIBRARY = torch.library.Library("vantage", "FRAGMENT")
WINDOW = "int[] kernel_size, int[] dilation, int[] stride, int[] is_causal, float scale"
FORWARD = f"(Tensor q, Tensor k, Tensor v, Tensor? bias, {WINDOW}) -> (Tensor out, Tensor lse)"
BACKWARD = (
    "(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor out, Tensor lse, "
    f"{WINDOW}) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_bias)"
)


@functools.cache
def define(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Defines both ops of the backend `name`; returns attend(q, k, v, axes, scale, bias) -> (out, lse)."""
    forward = f"neighborhood_attention_{name}"
    backward = f"{forward}_backward"
    LIBRARY.define(forward + FORWARD, tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.define(backward + BACKWARD, tags=torch.Tag.pt2_compliant_tag)
    forward_op = getattr(torch.ops.vantage, forward).default
    backward_op = getattr(torch.ops.vantage, backward).default

    def differentiate(ctx, grad_out: Tensor | None, grad_lse: Tensor | None):
        if grad_out is None and grad_lse is None:
            return (None,) * 9
        q, k, v, bias, out, lse = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        grads = backward_op(grad_out, grad_lse, q, k, v, bias, out, lse, *ctx.window)
        return *(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad)), *(None,) * 5

    def refuse(ctx, *_):
        raise RuntimeError(
            f"neighborhood_attention: backend='{name}' is differentiable once; use backend='reference' or 'tiled' "
            "for second derivatives"
        )

    for op, fake, gradient, save, fold in (
        (forward, fake_forward, differentiate, save_for_backward, functools.partial(fold_forward, forward_op)),
        (backward, fake_backward, refuse, None, functools.partial(fold_backward, backward_op)),
    ):
        qualified = f"vantage::{op}"
        torch.library.register_fake(qualified, fake, lib=LIBRARY)
        torch.library.register_autograd(qualified, gradient, setup_context=save, lib=LIBRARY)
        torch.library.register_vmap(qualified, fold, lib=LIBRARY)
    register_flop_formula(getattr(torch.ops.vantage, forward))(forward_flops)
    register_flop_formula(getattr(torch.ops.vantage, backward))(backward_flops)

    def attend(
        q: Tensor, k: Tensor, v: Tensor, axes: tuple[Axis, ...], scale: float, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        window = window_of(axes) if torch.compiler.is_compiling() else cached_window_of(axes)
        return forward_op(q, k, v, bias, *window, scale)

    return attend


def window_of(axes: tuple[Axis, ...]) -> tuple[list[int], ...]:
    """kernel_size, dilation, stride and is_causal as the schemas take them."""
    _, kernel_size, dilation, stride, is_causal = zip(*axes)
    return list(kernel_size), list(dilation), list(stride), [int(flag) for flag in is_causal]


cached_window_of = functools.lru_cache(window_of)


def save_for_backward(ctx, inputs, output) -> None:
    q, k, v, bias, *ctx.window = inputs
    ctx.save_for_backward(q, k, v, bias, *output)
    ctx.set_materialize_grads(False)


def forward_flops(q_shape, k_shape, v_shape, bias_shape, kernel_size, dilation, stride, is_causal, scale, **_) -> int:
    """For torch.utils.flop_counter: the pairs that attend, scored and mixed, multiply-adds counted twice."""
    batch, *lengths, heads, head_dim = q_shape
    axes = tuple(map(Axis, lengths, kernel_size, dilation, stride, map(bool, is_causal)))
    return 4 * batch * heads * count_pairs(axes) * head_dim


def backward_flops(grad_out_shape, grad_lse_shape, *rest, **_) -> int:
    """Five products where the forward pass has two."""
    shapes_of_inputs, window = rest[:4], rest[6:]
    return forward_flops(*shapes_of_inputs, *window) * 5 // 2


def fake_forward(q, k, v, bias, kernel_size, dilation, stride, is_causal, scale):
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


def fake_backward(grad_out, grad_lse, q, k, v, bias, out, lse, kernel_size, dilation, stride, is_causal, scale):
    grad_bias = q.new_empty((0,), dtype=torch.float32) if bias is None else bias.new_empty(bias.shape)
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape), grad_bias


def fold_forward(op, info, in_dims, q, k, v, bias, *window):
    """torch.vmap: the mapped dimension joins the batch; a mapped bias has none to join, so that it is looped over."""
    if in_dims[3] is not None:
        return looped(op, info, in_dims, (q, k, v, bias), window), (0, 0)
    q, k, v = (folded(t, dim, info.batch_size) for t, dim in zip((q, k, v), in_dims))
    return tuple(unfolded(t, info.batch_size) for t in op(q, k, v, bias, *window)), (0, 0)


def fold_backward(op, info, in_dims, *args):
    tensors, window = args[:8], args[8:]
    if tensors[5] is not None:  # its gradient is a sum over the batch, of which every mapped index needs its own
        return looped(op, info, in_dims, tensors, window), (0, 0, 0, 0)
    *grads, no_bias = op(*(folded(t, dim, info.batch_size) for t, dim in zip(tensors, in_dims)), *window)
    return (*(unfolded(t, info.batch_size) for t in grads), no_bias), (0, 0, 0, None)


def folded(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """(B, ...) with a mapped dimension `dim` of `size`, or without one -> (size * B, ...)."""
    if t is None:
        return None
    if size == 0:
        raise ValueError("neighborhood_attention: torch.vmap over a dimension of size 0; give it at least one entry")
    return (t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)


def unfolded(t: Tensor, size: int) -> Tensor:
    return t.unflatten(0, (size, t.shape[0] // size))


def looped(op, info, in_dims, tensors: tuple[Tensor | None, ...], window) -> tuple[Tensor, ...]:
    def at(index: int):
        return (t if dim is None else t.select(dim, index) for t, dim in zip(tensors, in_dims))

    return tuple(map(torch.stack, zip(*(op(*at(index), *window) for index in range(info.batch_size)))))


# all at once, before a FlopCounterMode takes its copy of the formulas: the backends themselves load at their first call
for _name in ("native", "triton", "cuda"):
    define(_name)

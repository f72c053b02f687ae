"""C++ backend for CPUs (kernels/neighborhood_attention): float32 and bfloat16, accumulated in float32.

Without stride and causal axes the kernels are vectorised over neighbouring queries; other windows take plain loops.
Compiled on first use (vantage/ops/build.py), and never holds more than a few rows of attention weights.
"""

import functools

import torch
from torch import Tensor

from vantage.ops import build
from vantage.ops.neighborhood_attention.registration import define
from vantage.ops.neighborhood_attention.windows import Axis

DTYPES = (torch.float32, torch.bfloat16)

registered = define("native")


def unavailable(q: Tensor, axes: tuple[Axis, ...]) -> str | None:
    """Why this call cannot run, and what to do about it; None where it can."""
    if q.device.type != "cpu":
        return f"backend='native' runs on the CPU and q is on {q.device}; use backend='auto'"
    if q.dtype not in DTYPES:
        return f"backend='native' takes float32 or bfloat16 and q is {q.dtype}; convert it or use backend='tiled'"
    return library_error()


@functools.cache
def library_error() -> str | None:
    """Compiles and loads the library at the first call."""
    try:
        build.load_cpu("neighborhood_attention")
    except build.BuildError as error:
        return str(error)
    return None


def attend(
    q: Tensor, k: Tensor, v: Tensor, axes: tuple[Axis, ...], scale: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(out, lse) as `registration.py` describes them."""
    if bias is not None:
        bias = bias.float().contiguous()
    return registered(q, k, v, axes, scale, bias)

"""Which way a resize takes."""

from typing import Literal

import torch
from torch import Tensor

from vantage.ops.resize import reference, whole
from vantage.ops.resize.rounding import to_bytes

Backend = Literal["auto", "whole", "reference"]
Rounding = Literal["each_pass", "once"]


def resize(x: Tensor, scale: float, *, rounding: Rounding = "each_pass", backend: Backend = "auto") -> Tensor:
    """MATLAB's imresize(x, scale), bicubic; see the package for the equation.

    x         (C, H, W) or (B, C, H, W), float of any precision, differentiable; or uint8, then of bytes and without
              gradient. Half precisions are computed in float32
    scale     the result has ceil(scale H) x ceil(scale W) pixels; 2 doubles, 1 / 3 is a third
    rounding  of bytes: "each_pass" after the rows and after the columns, as MATLAB does to a picture in uint8 (the
              usual small pictures of x2, x3, x4); "once", at the end (those of x8, and im2double before imresize)
    backend   "whole": scale n or 1 / n; "reference": any scale, one matrix per axis; "auto": the first that can
    Raises: ValueError
    """
    if x.ndim not in (3, 4) or 0 in x.shape[-2:]:
        raise ValueError(f"resize: x has shape {tuple(x.shape)}; give (C, H, W) or (B, C, H, W) with H, W >= 1")
    if not (x.is_floating_point() or x.dtype == torch.uint8):
        raise ValueError(f"resize: x is {x.dtype}; give a float or uint8")
    if not 0 < scale < float("inf"):
        raise ValueError(f"resize: scale={scale}; give a number above 0")
    if rounding not in ("each_pass", "once"):
        raise ValueError(f"resize: rounding={rounding!r}; use each_pass or once")
    factor = whole_factor(scale)
    if backend == "auto":
        backend = "whole" if factor else "reference"
    if backend not in ("whole", "reference"):
        raise ValueError(f"resize: backend={backend!r}; use auto, whole or reference")
    if backend == "whole" and not factor:
        raise ValueError(f"resize: scale={scale} is no whole factor n or 1 / n; use backend=reference or auto")
    is_bytes = x.dtype == torch.uint8
    between = is_bytes and rounding == "each_pass"
    if is_bytes and backend == "whole" and scale < 1:
        return whole.reduce_bytes(x, factor, between)
    # F.interpolate places the taps in the picture's type, in which pixel 1000 has no exact third
    exact_places = factor is not None and factor & (factor - 1) == 0
    precise = x.to(torch.promote_types(x.dtype, torch.float32) if exact_places and not is_bytes else torch.float64)
    if backend == "whole" and not between:
        out = whole.resize(precise if x.ndim == 4 else precise[None], factor, up=scale > 1)
        out = out if x.ndim == 4 else out[0]
    else:  # bytes that are enlarged and rounded in between, which nobody is in a hurry to do
        out = reference.resize(precise, scale, between)
    return (to_bytes(out) if is_bytes else out).to(x.dtype)


def whole_factor(scale: float) -> int | None:
    """n where scale is n or 1 / n."""
    factor = round(max(scale, 1 / scale))
    return factor if abs(max(scale, 1 / scale) - factor) < 1e-9 * factor else None

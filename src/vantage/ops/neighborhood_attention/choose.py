"""Which backends `auto` tries, best first, from measurements; the first that is available runs.

Every rule names the measurement it comes from: docs/benchmarks/neighborhood_attention.md, made by
`python -m vantage.ops.bench neighborhood_attention`.
"""

import math

import torch

from vantage.ops.neighborhood_attention.windows import Axis, count_pairs

HALF_OR_SINGLE = (torch.float16, torch.bfloat16, torch.float32)

# TO MEASURE (a guess so far): on CPU, dense attention scores length^2 pairs per axis where the window has fewer; from
# this many times the useful pairs on, native beats it. 1.0 means that native always does.
NATIVE_FROM_WASTE = 1.0


def candidates(device_type: str, dtype: torch.dtype, axes: tuple[Axis, ...]) -> tuple[str, ...]:
    """Names of backends in order of preference; the last one is always available."""
    if device_type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        # TO MEASURE: shapes A, A4, B and C, and maps of 7x7 and 14x14, native against tiled
        return ("native", "tiled") if waste_of_dense(axes) >= NATIVE_FROM_WASTE else ("tiled",)
    if device_type == "cuda" and dtype in HALF_OR_SINGLE:
        # TO MEASURE on a GPU: nothing was run yet; `cuda` is tried only where it is named
        return "triton", "flex", "tiled"
    return ("tiled",)


def waste_of_dense(axes: tuple[Axis, ...]) -> float:
    """How many pairs dense attention scores per pair that attends."""
    return math.prod(axis.length**2 for axis in axes) / count_pairs(axes)

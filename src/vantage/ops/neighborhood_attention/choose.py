"""Which backends `auto` tries, best first, from measurements; the first that is available runs.

Every rule names the measurement it comes from: docs/benchmarks/neighborhood_attention.md, made by
`python -m vantage.ops.bench neighborhood_attention`.
"""

import math

import torch

from vantage.ops.neighborhood_attention.windows import Axis, count_pairs

HALF_OR_SINGLE = (torch.float16, torch.bfloat16, torch.float32)

# On CPUs `native` fills its vectors with neighbouring queries of a map row, and SDPA over the whole map (what `tiled`
# does there) is hard to beat where the map is hardly larger than the window.
NATIVE_FROM_WIDTH = 12  # queries in a row of a residue class
NATIVE_FROM_WASTE = 2.0  # pairs that dense attention scores per pair that attends


def candidates(device_type: str, dtype: torch.dtype, axes: tuple[Axis, ...]) -> tuple[str, ...]:
    """Names of backends in order of preference; the last one is always available."""
    if device_type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        wide = axes[-1].length // axes[-1].dilation >= NATIVE_FROM_WIDTH
        return ("native", "tiled") if wide and waste_of_dense(axes) >= NATIVE_FROM_WASTE else ("tiled",)
    if device_type == "cuda" and dtype in HALF_OR_SINGLE:
        # NOT MEASURED: neither kernel has run on a GPU yet. Both score what tiles of queries see, FlexAttention
        # every block of 128 x 128 pairs that a window meets. Triton comes with PyTorch; `cuda` needs nvcc and a minute
        # to compile, and so comes second: where Triton is missing.
        return "triton", "cuda", "flex", "tiled"
    return ("tiled",)


def waste_of_dense(axes: tuple[Axis, ...]) -> float:
    """How many pairs dense attention scores per pair that attends."""
    return math.prod(axis.length**2 for axis in axes) / count_pairs(axes)

"""Triton backend: fused tiles on a GPU, forward and backward, float16, bfloat16 and float32, any head_dim up to 128.

`triton_forward.py` and `triton_backward.py` hold the kernels, `triton_tiles.py` what they share. This file picks the
tiles and launches; it imports Triton at the first call, never before. Results are deterministic. The sizes of tiles
follow from the shapes of a call by counting scores, not by timing, so nothing is tuned on the fly.
With TRITON_INTERPRET=1 in the environment of the process the kernels run on CPU tensors: for tests.
"""

import functools
import importlib.util
import itertools
import math
import os
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from vantage.ops.neighborhood_attention.registration import define
from vantage.ops.neighborhood_attention.windows import Axis

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 128
STEP = 16  # one more step of a kernel's loop costs as much as the scores of so many streamed tokens
BIAS_PROGRAMS = 1024  # of the kernel of the bias, at least, if there are as many tiles: enough to fill a GPU
BIAS_WORKSPACE = 64 << 20  # bytes, unless one split alone needs more
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")

Box = tuple[int, int, int]  # tokens of a tile along z, y and x

attend = define("triton")


def unavailable(q: Tensor, axes: tuple[Axis, ...]) -> str | None:
    """Why this call cannot run, and what to do about it; None where it can."""
    if q.device.type != "cuda" and not (IS_INTERPRETED and q.device.type == "cpu"):
        return f"backend='triton' runs on a GPU and q is on {q.device}; use backend='auto'"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton, which there is for Linux, or use backend='tiled'"
    if q.dtype not in DTYPES:
        return f"backend='triton' takes float16, bfloat16 or float32 and q is {q.dtype}; use backend='tiled'"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"backend='triton' takes a head_dim up to {MAX_HEAD_DIM}, not {q.shape[-1]}; use backend='tiled'"
    if q.device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(q.device)
        if major < 8:  # which Triton does not support
            return f"backend='triton' needs compute capability 8.0, {q.device} has {major}.{minor}; use backend='tiled'"
    return None


@functools.cache
def kernels() -> SimpleNamespace:
    from vantage.ops.neighborhood_attention import triton_backward, triton_forward

    return SimpleNamespace(
        attend=triton_forward.attend_kernel,
        grad_query=triton_backward.grad_query_kernel,
        grad_key=triton_backward.grad_key_kernel,
        grad_bias=triton_backward.grad_bias_kernel,
    )


class Plan(NamedTuple):
    """What follows from the shapes of a call."""

    stays: Box  # the tile that a program keeps: of queries, or of keys in the kernel of their gradient
    streams: Box  # the tiles that pass by it
    tiles: int  # of those that stay, in one head of one image
    kernels: Box
    numbers: tuple[int, ...]  # arguments of every kernel: lengths, kernel sizes, dilations
    constants: dict[str, int | bool]


@functools.lru_cache(maxsize=1024)
def plan_of(axes: tuple[Axis, ...], dtype: torch.dtype, head_dim: int, has_bias: bool) -> Plan:
    block_d = max(16, 1 << (head_dim - 1).bit_length())
    if dtype == torch.float32:  # multiplied without tensor cores, from registers
        stays, streams, warps, stages = 32, (32,), max(4, block_d // 8), 1
    else:
        stays, streams, warps, stages = 64, (32,), 8 if block_d > 64 else 4, 2
        if block_d <= 32 and not has_bias:
            streams = (32, 64)
    three = (*(Axis(1, 1),) * (3 - len(axes)), *axes)
    stays, streams = choose_tiles(three, len(axes), stays, streams)
    constants = {"AXES": len(axes), "HEAD_DIM": head_dim, "BLOCK_D": block_d, "num_warps": warps, "num_stages": stages}
    constants["enable_fp_fusion"] = True  # from Triton 3.10 on a multiplication and an addition would stay apart
    for name, axis in zip("ZYX", three):
        constants |= {f"STRIDE_{name}": axis.stride, f"CAUSAL_{name}": bool(axis.is_causal)}
    tiles = math.prod(axis.dilation * ceil_div(class_length(axis), size) for axis, size in zip(three, stays))
    lengths, kernel_sizes, dilations, *_ = zip(*three)
    return Plan(stays, streams, tiles, kernel_sizes, (*lengths, *kernel_sizes, *dilations), constants)


def choose_tiles(three: tuple[Axis, ...], count: int, stays: int, streams: tuple[int, ...]) -> tuple[Box, Box]:
    """The boxes, of `stays` and of any of `streams` tokens, that compute the fewest scores."""

    def cost(boxes: tuple[Box, Box]) -> tuple[int, int]:
        programs, steps = 1, 1
        for axis, stay, stream in zip(three, *boxes):
            halo = min(class_length(axis), stay + axis.kernel + axis.stride - 2)
            programs *= ceil_div(class_length(axis), stay)
            steps *= ceil_div(halo, stream)
        # of equals the longest along x, where neighbours in memory are
        return programs * steps * (math.prod(boxes[1]) + STEP), -boxes[0][2] - boxes[1][2]

    choices = (boxes_of(tokens, count) for tokens in streams)
    return min(itertools.product(boxes_of(stays, count), itertools.chain(*choices)), key=cost)


def boxes_of(tokens: int, count: int) -> list[Box]:
    """All boxes of so many tokens whose sides are powers of two, flat along axes that the call does not have."""
    sides = [1 << power for power in range(tokens.bit_length())]
    boxes = itertools.product(*([1],) * (3 - count), *(sides,) * count)
    return [box for box in boxes if math.prod(box) == tokens]


def class_length(axis: Axis) -> int:
    """Of the longest residue class."""
    return ceil_div(axis.length, axis.dilation)


def ceil_div(a: int, b: int) -> int:
    return -(a // -b)


def plan_for(q: Tensor, bias: Tensor | None, *window) -> Plan:
    return plan_of(tuple(map(Axis, q.shape[1:-2], *window)), q.dtype, q.shape[-1], bias is not None)


def launch(kernel, programs: int, pointers: tuple, plan: Plan, scale: float, stays: str, *numbers: int, **constants):
    """pointers begin with q, k, v; `stays` is QUERIES or KEYS, `numbers` are arguments of this kernel alone."""
    strides = []
    for t in pointers[:3]:
        batch, *others = t.stride()
        strides += [batch, *(0,) * (5 - len(others)), *others]
    streams = "KEYS" if stays == "QUERIES" else "QUERIES"
    for name, stay, stream in zip("ZYX", plan.stays, plan.streams):
        constants[f"{stays}_{name}"], constants[f"{streams}_{name}"] = stay, stream
    heads = pointers[0].shape[-2]
    with torch.cuda.device_of(pointers[0]):
        kernel[(programs,)](*pointers, *strides, heads, scale, *plan.numbers, *numbers, **plan.constants, **constants)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    kernel_size: list[int],
    dilation: list[int],
    stride: list[int],
    is_causal: list[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`vantage::neighborhood_attention_triton`, see registration.py."""
    plan = plan_for(q, bias, kernel_size, dilation, stride, is_causal)
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    programs = q.shape[0] * plan.tiles * q.shape[-2]
    pointers = (q, k, v, float_table(bias), out, lse)
    launch(kernels().attend, programs, pointers, plan, scale, "QUERIES", HAS_BIAS=bias is not None)
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    kernel_size: list[int],
    dilation: list[int],
    stride: list[int],
    is_causal: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`vantage::neighborhood_attention_triton_backward`, see registration.py."""
    plan = plan_for(q, bias, kernel_size, dilation, stride, is_causal)
    programs = q.shape[0] * plan.tiles * q.shape[-2]
    grad_out, out, lse, table = grad_out.contiguous(), out.contiguous(), lse.contiguous(), float_table(bias)
    grad_lse = None if grad_lse is None else grad_lse.to(torch.float32).contiguous()
    grad_q, grad_k, grad_v = (q.new_empty(q.shape) for _ in range(3))
    delta = torch.empty_like(lse)  # grad_query_kernel writes it, the others read it
    flags = {"HAS_BIAS": bias is not None}

    pointers = (q, k, v, table, out, lse, grad_out, grad_lse, grad_q, delta)
    kernel = kernels().grad_query
    launch(kernel, programs, pointers, plan, scale, "QUERIES", **flags, HAS_GRAD_LSE=grad_lse is not None)
    pointers = (q, k, v, table, lse, delta, grad_out, grad_k, grad_v)
    launch(kernels().grad_key, programs, pointers, plan, scale, "KEYS", **flags)
    if bias is None:
        return grad_q, grad_k, grad_v, q.new_empty(0, dtype=torch.float32)
    grad_bias = grad_table(plan, scale, (q, k, v, table, lse, delta, grad_out))
    return grad_q, grad_k, grad_v, grad_bias.to(bias.dtype).reshape(bias.shape)


def grad_table(plan: Plan, scale: float, pointers: tuple[Tensor, ...]) -> Tensor:
    """Gradient of the bias, float32 (heads, 2 * kernel - 1 per axis z, y, x), from a workspace of bounded size."""
    q = pointers[0]
    batch, heads = q.shape[0], q.shape[-2]
    entries = [2 * kernel - 1 for kernel in plan.kernels]
    spans = [
        ceil_div(entry + stay - 1, stream) * stream for entry, stay, stream in zip(entries, plan.stays, plan.streams)
    ]
    tiles = batch * plan.tiles
    shifts = math.prod(spans) // math.prod(plan.streams)
    split_bytes = 4 * heads * math.prod(plan.stays) * math.prod(spans)
    splits = max(1, min(ceil_div(BIAS_PROGRAMS, shifts * heads), BIAS_WORKSPACE // split_bytes, tiles))
    split_tiles = ceil_div(tiles, splits)
    splits = ceil_div(tiles, split_tiles)
    workspace = q.new_empty((splits, heads, *plan.stays, *spans), dtype=torch.float32)
    programs = splits * shifts * heads
    launch(kernels().grad_bias, programs, (*pointers, workspace), plan, scale, "QUERIES", tiles, split_tiles, *spans)
    # query i of a tile and the key at u meet at entry u - i of the table: a view (.., i, entry) of the diagonals
    strides = workspace.stride()
    diagonals = [along_i + along_u for along_i, along_u in zip(strides[2:5], strides[5:])]
    by_entry = workspace.as_strided((splits, heads, *plan.stays, *entries), (*strides[:2], *diagonals, *strides[5:]))
    return by_entry.sum((0, 2, 3, 4))


def float_table(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(torch.float32).contiguous()


DEVICES = ("cuda", "cpu") if IS_INTERPRETED else "cuda"
torch.library.impl("vantage::neighborhood_attention_triton", DEVICES)(forward)
torch.library.impl("vantage::neighborhood_attention_triton_backward", DEVICES)(backward)

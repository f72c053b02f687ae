"""CUDA C++ backend (kernels/neighborhood_attention/cuda.cu): tensor cores for float16 and bfloat16, plain float32.

Compiled by nvcc on first use for the GPUs of the machine (vantage/ops/build_cuda.py). Forward and backward are
deterministic: no atomics, and sums in an order that depends on the sizes alone.
"""

import functools

import torch
from torch import Tensor

from vantage.ops import build, build_cuda
from vantage.ops.neighborhood_attention.registration import define
from vantage.ops.neighborhood_attention.windows import Axis

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_HEAD_DIM = 128

attend = define("cuda")


def unavailable(q: Tensor, axes: tuple[Axis, ...]) -> str | None:
    """Why this call cannot run, and what to do about it; None where it can. Compiles the kernels at the first call."""
    if q.device.type != "cuda" or torch.version.cuda is None:
        return f"backend='cuda' runs on an NVIDIA GPU and q is on {q.device}; use backend='auto'"
    if q.dtype not in DTYPES:
        return f"backend='cuda' takes float16, bfloat16 or float32 and q is {q.dtype}; use backend='tiled'"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"backend='cuda' takes a head_dim up to {MAX_HEAD_DIM}, not {q.shape[-1]}; use backend='tiled'"
    major, minor = torch.cuda.get_device_capability(q.device)
    if 10 * major + minor < build_cuda.SUPPORTED_FROM:
        return f"backend='cuda' needs compute capability 8.0 and {q.device} has {major}.{minor}; use backend='triton'"
    return library_error()


@functools.cache
def library_error() -> str | None:
    try:
        build_cuda.load_cuda("neighborhood_attention", build_cuda.visible_architectures())
    except build.BuildError as error:
        return str(error)
    return None

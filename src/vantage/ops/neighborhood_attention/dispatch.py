"""From a backend's name to its function: modules are imported, and native code is built, when first needed."""

import functools
import importlib
import logging
from collections.abc import Callable
from operator import index

import torch
from torch import Tensor

from vantage.ops.neighborhood_attention.arguments import compute_dtype, is_autocast
from vantage.ops.neighborhood_attention.choose import candidates
from vantage.ops.neighborhood_attention.windows import Axis

BACKENDS = ("native", "triton", "cuda", "flex", "tiled", "reference")
COMPOSITES = ("flex", "tiled", "reference")  # of PyTorch operators: lse costs extra, and only if asked for
FUNCTIONS: dict[str, Callable] = {}  # attend of every backend that was resolved

log = logging.getLogger("vantage.ops.neighborhood_attention")


def resolve_backend(backend: str, q: Tensor, axes: tuple[Axis, ...]) -> str:
    """The backend that a call runs on. `auto` chooses; anything else is taken at its word: where it cannot run,
    RuntimeError says what is missing."""
    heads, head_dim = map(index, q.shape[-2:])  # under torch.compile, too, plain numbers
    name, missing = resolved(backend, q.device, compute_dtype(q), heads, head_dim, axes)
    if name is None:
        raise ValueError(f"neighborhood_attention: backend={backend!r} is unknown; use auto, {', '.join(BACKENDS)}")
    if missing:
        raise RuntimeError(f"neighborhood_attention: backend={backend!r} cannot run: {missing}")
    return name


def resolved(backend, device, dtype, heads, head_dim, axes) -> tuple[str | None, str | None]:
    return cached_resolved(backend, device, dtype, heads, head_dim, axes)


# torch.compile must trace neither imports nor a compiler's run. This is what the decorator
# torch.compiler.assume_constant_result does, but that imports torch._dynamo and with it Triton.
resolved._dynamo_marked_constant = True


@functools.lru_cache(maxsize=1024)
def cached_resolved(
    backend: str, device: torch.device, dtype: torch.dtype, heads: int, head_dim: int, axes: tuple[Axis, ...]
) -> tuple[str | None, str | None]:
    """(name or None if unknown, why it cannot run or None)."""
    if backend != "auto" and backend not in BACKENDS:
        return None, None
    # backends are asked by example, so that the answer can be kept: one image without memory behind it
    q = torch.empty((), device=device, dtype=dtype).expand(1, *(axis.length for axis in axes), heads, head_dim)
    if backend != "auto":
        return backend, why_not(backend, q, axes)
    refusals = []
    for name in candidates(device.type, dtype, axes):
        missing = why_not(name, q, axes)
        if missing is None:
            log_choice(name, str(dtype).removeprefix("torch."), device.type, tuple(refusals))
            return name, None
        refusals.append(f"{name} cannot run: {missing}")
    raise AssertionError(refusals)


def why_not(name: str, q: Tensor, axes: tuple[Axis, ...]) -> str | None:
    return load(name).unavailable(q, axes)


def load(name: str):
    module = importlib.import_module(f"vantage.ops.neighborhood_attention.{name}")
    FUNCTIONS[name] = module.attend
    return module


@functools.cache
def log_choice(name: str, dtype: str, device: str, refusals: tuple[str, ...]) -> None:
    log.info("; ".join((f"neighborhood_attention: backend '{name}' for {dtype} on {device}", *refusals)))


def call_backend(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    axes: tuple[Axis, ...],
    scale: float,
    bias: Tensor | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    if name not in COMPOSITES:
        return FUNCTIONS[name](q, k, v, axes, scale, bias)
    if is_autocast(q):  # their inputs are cast already; softmax and lse stay in float32
        with torch.autocast(q.device.type, enabled=False):
            return FUNCTIONS[name](q, k, v, axes, scale, bias, return_lse)
    return FUNCTIONS[name](q, k, v, axes, scale, bias, return_lse)

"""From a backend's name to its function; the compiled libraries are built when first needed."""

import functools
import importlib
import logging
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

BACKENDS = ("native", "cuda", "reference")
AUTO = {"cuda": ("cuda", "reference")}  # by kind of device; elsewhere native, then the reference
OPS = ("rotated_iou", "rotated_nms", "points_in_rotated_boxes", "rotated_roi_align")
FUNCTIONS: dict[tuple[str, str], Callable] = {}  # by backend and op: none, or all

log = logging.getLogger("vantage.ops.rotated_boxes")


def backend_function(op: str, backend: str, example: Tensor) -> Callable:
    """The function of `op` that a call with tensors like `example` runs on. `auto` takes the compiled one where it can
    run, else the reference, and says which once; a name is taken at its word."""
    name, missing = resolved(op, backend, example.device.type, example.dtype)
    if name is None:
        raise ValueError(
            f"{op}: backend={backend!r} is unknown; use auto, {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}"
        )
    if missing:
        raise RuntimeError(f"{op}: backend={backend!r} cannot run: {missing}")
    return FUNCTIONS[name, op]


def resolved(op: str, backend: str, device: str, dtype: torch.dtype) -> tuple[str | None, str | None]:
    return cached_resolved(op, backend, device, dtype)


# torch.compile must not trace a compiler's run; what torch.compiler.assume_constant_result does, without its import
resolved._dynamo_marked_constant = True


@functools.cache
def cached_resolved(op: str, backend: str, device: str, dtype: torch.dtype) -> tuple[str | None, str | None]:
    """(name or None if unknown, why it cannot run or None)."""
    if backend not in ("auto", *BACKENDS):
        return None, None
    names = AUTO.get(device, ("native", "reference")) if backend == "auto" else (backend,)
    modules, refusals = load_backends(), []
    for name in names:
        missing = modules[name].unavailable(device)
        if missing and backend != "auto":
            return name, missing
        if not missing:
            break
        refusals.append(f"{name} cannot run: {missing}")
    if backend == "auto":
        kind = str(dtype).removeprefix("torch.")
        log.info("; ".join((f"{op}: backend '{name}' for {kind} on {device}", *refusals)))
    return name, None


@functools.cache
def load_backends() -> dict[str, ModuleType]:
    """All at once: torch.compile, which meets FUNCTIONS in the middle of a graph, does not see what is added later."""
    modules = {name: importlib.import_module(f"vantage.ops.rotated_boxes.{name}") for name in BACKENDS}
    FUNCTIONS.update({(name, op): getattr(module, op) for name, module in modules.items() for op in OPS})
    return modules

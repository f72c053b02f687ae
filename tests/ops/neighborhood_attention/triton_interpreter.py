"""Runs in a process of its own, where Triton interprets kernels on CPU tensors: it decides that when it is imported.

Reads lines of JSON, [task, *arguments], and answers each with one: "" or what went wrong. See test_triton.py.
"""

import dataclasses
import json
import sys
import traceback

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from vantage.ops.neighborhood_attention import triton as backend
from vantage.ops.neighborhood_attention.triton_tiles import keys_of, queries_of
from vantage.ops.neighborhood_attention.windows import Axis, window_bounds

from . import test_backends
from .cases import Case, check, inputs, through_op


def agrees(case: list, dtype: str) -> None:
    check(through_op("triton"), case_of(case), getattr(torch, dtype))


def case_of(fields: list) -> Case:
    """JSON has no tuples."""
    return Case(*(tuple(field) if isinstance(field, list) else field for field in fields))


def passes_test_of_backends(name: str, argument: str | None) -> None:
    arguments = [] if argument is None else [getattr(torch, argument) if "float" in argument else argument]
    getattr(test_backends, f"test_{name}")("triton", *arguments)


def passes_opcheck(case: list) -> None:
    case = case_of(case)
    made = inputs(case, torch.float32)
    leaves = [made[key].requires_grad_() for key in ("q", "k", "v", "bias")]
    window = [list(map(int, values)) for values in (case.kernel, case.dilation, case.stride, case.is_causal)]
    torch.library.opcheck(torch.ops.vantage.neighborhood_attention_triton.default, (*leaves, *window, 0.3))
    leaves = [leaf.detach() for leaf in leaves]
    out, lse = torch.ops.vantage.neighborhood_attention_triton(*leaves, *window, 0.3)
    torch.library.opcheck(
        torch.ops.vantage.neighborhood_attention_triton_backward.default,
        (made["grad_out"], made["grad_lse"], *leaves, out, lse, *window, 0.3),
        test_utils=("test_schema", "test_faketensor"),
    )


@triton.jit
def ranges_kernel(
    start, length, kernel, first_key, keys, first_query, queries, count,
    BLOCK: tl.constexpr, TILE: tl.constexpr, STRIDE: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    index = tl.arange(0, BLOCK)
    mask = index < count
    args = (tl.load(start + index, mask), tl.load(length + index, mask), tl.load(kernel + index, mask))
    first, number = keys_of(args[0], args[1], args[2], TILE, STRIDE, IS_CAUSAL)
    tl.store(first_key + index, first, mask)
    tl.store(keys + index, number, mask)
    first, number = queries_of(args[0], args[1], args[2], TILE, STRIDE, IS_CAUSAL)
    tl.store(first_query + index, first, mask)
    tl.store(queries + index, number, mask)


def ranges_are_exact(stride: int, is_causal: bool, tile: int) -> None:
    """Of every tile of every small axis: from the first to the last key that it sees, and query that sees it."""
    starts, wanted = [], []
    for length in range(1, 14):
        for kernel in range(stride, length + 1):
            place = torch.arange(length)
            first, last = window_bounds(Axis(length, kernel, 1, stride, is_causal), place)
            for start in range(0, length, tile):
                here = slice(start, start + tile)
                sees = (last >= start) & (first < start + tile)
                seeing = place[sees]
                starts.append((start, length, kernel))
                begin, end = first[here].min(), last[here].max()
                wanted.append((begin, end - begin + 1, seeing.min(), seeing.max() - seeing.min() + 1))
    start, length, kernel = torch.tensor(starts, dtype=torch.int32).T.contiguous()
    got = torch.full((4, len(starts)), -1, dtype=torch.int32)
    block = 1 << (len(starts) - 1).bit_length()
    ranges_kernel[(1,)](start, length, kernel, *got, len(starts), block, tile, stride, is_causal)
    assert torch.equal(got.T.long(), torch.tensor(wanted))


def sums_in_splits(case: list, programs: int, workspace: int) -> None:
    """The gradient of the bias, with other numbers of partial sums."""
    backend.BIAS_PROGRAMS, backend.BIAS_WORKSPACE = programs, workspace
    try:
        agrees(case, "float32")
    finally:
        backend.BIAS_PROGRAMS, backend.BIAS_WORKSPACE = DEFAULTS


DEFAULTS = backend.BIAS_PROGRAMS, backend.BIAS_WORKSPACE
TASKS = (agrees, passes_test_of_backends, passes_opcheck, ranges_are_exact, sums_in_splits)
NAMED = {task.__name__: task for task in TASKS}


def hurry() -> None:
    """Five times as fast. Triton searches its whole language for functions to replace whenever a kernel calls a helper:
    once for every file of helpers is enough, because what it replaces in their names it never restores. And it works
    out whether integers overflow, which it says only in debug mode."""
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    replace = interpreter._patch_lang
    seen = set()

    def replace_once(fn):
        if fn.__module__ in seen and not fn.__name__.endswith("_kernel"):
            return None
        seen.add(fn.__module__)
        scope = replace(fn)
        tl.tensor.__index__ = lambda tensor: tensor.handle.data.item()  # Triton 3.6 has what NumPy 2.4 refuses
        return scope

    interpreter._patch_lang = replace_once


def main() -> None:
    hurry()
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN: a result nobody wrote is seen
    for line in sys.stdin:
        task, *arguments = json.loads(line)
        torch.manual_seed(0)
        try:
            NAMED[task](*arguments)
            answer = ""
        except (Exception, pytest.skip.Exception):
            answer = traceback.format_exc()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

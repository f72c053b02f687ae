"""Benchmark of neighborhood attention: python -m vantage.ops.bench neighborhood_attention.

FLOPs are the useful ones: 4 * B * heads * (pairs that attend) * head_dim forward, 2.5 times that backward.
Peers: `tiled`, plain PyTorch; `reference`, gather and matrix products; `sdpa`, dense attention over the whole map with
the window as its mask; on a GPU `flex`, compiled FlexAttention with a cached block mask.
"""

import argparse
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vantage.ops import bench
from vantage.ops.neighborhood_attention import BACKENDS, neighborhood_attention, resolve_backend
from vantage.ops.neighborhood_attention.tiled import dense_mask
from vantage.ops.neighborhood_attention.windows import Axis, count_pairs

SUMMARY = "neighborhood attention: backends and peers, forward and backward"


class Shape(NamedTuple):
    batch: int
    length: int  # of both axes
    heads: int
    head_dim: int
    kernel: int
    dilation: int = 1

    @property
    def axes(self) -> tuple[Axis, ...]:
        return (Axis(self.length, self.kernel, self.dilation),) * 2

    @property
    def flops(self) -> int:
        return 4 * self.batch * self.heads * count_pairs(self.axes) * self.head_dim

    @property
    def elements(self) -> int:
        return self.batch * self.length**2 * self.heads * self.head_dim

    def __str__(self) -> str:
        dilated = f" dilation {self.dilation}" if self.dilation > 1 else ""
        return f"({self.batch}, {self.length}, {self.length}, {self.heads}, {self.head_dim}) k{self.kernel}{dilated}"


SHAPES = {
    "cpu": {
        "A": Shape(2, 56, 4, 32, 7),
        "A4": Shape(2, 56, 4, 32, 7, 4),
        "B": Shape(1, 28, 8, 32, 13),
        "C": Shape(1, 112, 4, 32, 7),
    },
    "cuda": {
        f"{name}{batch}": Shape(batch, *rest)
        for name, rest in (
            ("A", (56, 4, 32, 7)),
            ("B", (28, 8, 32, 13)),
            ("C", (112, 4, 32, 7)),
            ("D", (64, 4, 64, 21)),
        )
        for batch in (128, 16)
    },
}
DEFAULT_CONTENDERS = {
    "cpu": ("native", "tiled", "reference", "sdpa"),
    "cuda": ("triton", "cuda", "tiled", "flex", "sdpa"),
}
PARTS = {"cpu": ("forward", "forward + backward"), "cuda": ("forward", "backward", "forward + backward")}
FLOPS_OF_PART = {"forward": 1.0, "backward": 2.5, "forward + backward": 3.5}
TENSORS_OF_PART = {"forward": 4, "backward": 8}  # q, k, v, out; then also their gradients
SMALLEST = Shape(1, 4, 1, 8, 3)
SAME_TOKENS = (Shape(64, 28, 4, 32, 7), Shape(16, 56, 4, 32, 7), Shape(4, 112, 4, 32, 7), Shape(1, 224, 4, 32, 7))
OVERHEAD_LOOPS = 500
COARSEST = 0.05  # how far an output may be from tiled's, of its largest value: in bfloat16 all are closer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", help="comma-separated: A,A4,B,C on a CPU; A128,A16,B128 .. D16 on a GPU (all)")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 (float32 on a CPU, bfloat16 on a GPU)")
    parser.add_argument("--backends", help=f"comma-separated, of {', '.join(BACKENDS)} and the peer sdpa")


def run(arguments: argparse.Namespace) -> dict:
    device = torch.device(arguments.device)
    known = SHAPES[device.type]
    shapes = pick(arguments.shapes, tuple(known), "shapes")
    contenders = pick(arguments.backends, (*BACKENDS, "sdpa"), "backends", DEFAULT_CONTENDERS[device.type])
    usual = "bfloat16" if device.type == "cuda" else "float32"
    (name,) = pick(arguments.dtype or usual, ("float32", "bfloat16", "float16"), "dtype")
    dtype = getattr(torch, name)
    linear = [name for name in contenders if name not in ("sdpa", "reference", "flex")]  # in tokens
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = {name: compare(name, known[name], contenders, dtype, device, arguments.repeats) for name in shapes}
        result["call overhead"] = overhead(linear, dtype, device, arguments.repeats)
        result["time per token"] = time_per_token(linear, dtype, device, arguments.repeats)
        result["bfloat16 and float32"] = half_against_single(linear, known, shapes, device, arguments.repeats)
    return result


def pick(asked: str | None, known: tuple[str, ...], option: str, default: tuple[str, ...] | None = None) -> list[str]:
    names = list(default or known) if asked is None else asked.split(",")
    for name in names:
        if name not in known:
            raise SystemExit(f"--{option}: {name!r} is unknown; use {', '.join(known)}")
    return names


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """q, k, v as views of one tensor, as a fused qkv layer makes them, and the gradient of the output."""
    qkv = torch.randn(shape.batch, shape.length, shape.length, 3, shape.heads, shape.head_dim, device=device)
    out = torch.randn(shape.batch, shape.length, shape.length, shape.heads, shape.head_dim, device=device)
    return [*(t.detach() for t in qkv.to(dtype).unbind(3)), out.to(dtype)]


def function_of(contender: str, shape: Shape) -> Callable:
    """q, k, v -> out."""
    if contender == "sdpa":
        return functools.partial(sdpa, shape.axes)
    return functools.partial(
        neighborhood_attention, kernel_size=shape.kernel, dilation=shape.dilation, backend=contender
    )


def sdpa(axes: tuple[Axis, ...], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    lengths = q.shape[1:3]
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (B, heads, N, d)
    out = F.scaled_dot_product_attention(q, k, v, dense_mask(axes, q.device, q.dtype)[0])
    return out.transpose(1, 2).unflatten(1, lengths)


def calls_of(contender: str, shape: Shape, tensors: list[Tensor], parts: tuple[str, ...]) -> dict[str, Callable]:
    """A function without arguments for each part that the contender can do."""
    function, (q, k, v, grad_out) = function_of(contender, shape), tensors
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]

    def forward():
        with torch.no_grad():
            return function(q, k, v)

    calls = {"forward": forward}
    if contender == "flex" and q.device.type == "cpu":
        return calls  # PyTorch refuses its backward
    if "backward" in parts:
        kept = function(*leaves)
        calls["backward"] = lambda: torch.autograd.grad(kept, leaves, grad_out, retain_graph=True)
    calls["forward + backward"] = lambda: torch.autograd.grad(function(*leaves), leaves, grad_out)
    return calls


def missing(contender: str, shape: Shape, q: Tensor) -> str | None:
    if contender != "sdpa":
        try:
            resolve_backend(contender, q, shape.axes)
        except RuntimeError as error:
            return str(error).removeprefix("neighborhood_attention: ")
    return None


def compare(
    label: str, shape: Shape, contenders: list[str], dtype: torch.dtype, device: torch.device, repeats: int
) -> dict:
    """All contenders on one shape, with the limits of arithmetic and bandwidth, as a printed table."""
    parts, tensors = PARTS[device.type], inputs(shape, dtype, device)
    gemm_dtype = dtype if device.type == "cuda" else torch.float32
    calls = {(name, ""): call for name, call in bench.limits(device, gemm_dtype).items()}
    notes, wanted = [], None
    if "flex" in contenders and device.type == "cuda":
        torch._dynamo.reset()  # every shape is a compilation of its own; their number is limited
    for name in ["tiled", *(name for name in contenders if name != "tiled")]:
        why_not = missing(name, shape, tensors[0])
        if why_not is None:
            try:
                wanted = check_output(name, shape, tensors, wanted)
                if name in contenders:
                    calls |= {(name, part): call for part, call in calls_of(name, shape, tensors, parts).items()}
            except Exception as error:  # compilers and memory fail in many ways, and the others still count
                why_not = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if why_not:
            notes.append(f"{name}: {why_not}")
    samples = bench.interleaved(calls, repeats, device)
    gemm = bench.gemm_rate(bench.median(samples.pop(("gemm", ""))), device)
    copy = bench.copy_rate(bench.median(samples.pop(("copy", ""))), device)
    notes.append(
        f"{str(gemm_dtype).removeprefix('torch.')} matrix product {gemm / 1e9:.0f} GFLOP/s, copy {copy / 1e9:.1f} GB/s"
    )
    print_comparison(
        f"{label}: {shape} {str(dtype).removeprefix('torch.')}", shape, samples, gemm, copy, dtype, parts, notes
    )
    return {
        "shape": shape._asdict(),
        "dtype": str(dtype),
        "gemm_flops_per_second": gemm,
        "copy_bytes_per_second": copy,
        "seconds": [{"backend": name, "part": part, "samples": times} for (name, part), times in samples.items()],
        "notes": notes,
    }


def check_output(name: str, shape: Shape, tensors: list[Tensor], wanted: Tensor | None) -> Tensor:
    """A fast wrong answer is none: every contender's output must be that of tiled."""
    with torch.no_grad():
        out = function_of(name, shape)(*tensors[:3])
    if wanted is None:
        return out
    error = ((out - wanted).abs().max() / wanted.abs().max()).item()
    if not error < (COARSEST if out.dtype != torch.float32 else COARSEST / 10):
        raise AssertionError(f"differs from tiled by {error:.2g} of the largest output, so that it was not timed")
    return wanted


def print_comparison(title: str, shape: Shape, samples: dict, gemm: float, copy: float, dtype, parts, notes) -> None:
    medians = {key: bench.median(times) for key, times in samples.items()}
    is_gpu = "backward" in parts
    rival = "flex" if is_gpu else "tiled"
    headings = [""]
    for part in parts:
        headings += [f"{part} ms", "spread", "% gemm"]
        headings += ["% copy"] * (is_gpu and part in TENSORS_OF_PART) + [f"x {rival}"]
    rows = []
    for name in dict.fromkeys(name for name, _ in medians):
        row = [name]
        for part in parts:
            seconds = medians.get((name, part))
            cells = 4 + (is_gpu and part in TENSORS_OF_PART)
            if seconds is None:
                row += ["-"] * cells
                continue
            row += [f"{seconds * 1e3:.3f}", f"{spread(samples[name, part]):.0%}"]
            row.append(f"{100 * shape.flops * FLOPS_OF_PART[part] / seconds / gemm:.1f}")
            if is_gpu and part in TENSORS_OF_PART:
                bytes_moved = TENSORS_OF_PART[part] * shape.elements * dtype.itemsize
                row.append(f"{100 * bytes_moved / seconds / copy:.1f}")
            row.append(f"{medians[rival, part] / seconds:.2f}" if (rival, part) in medians else "-")
        rows.append(row)
    bench.print_table(title, headings, rows, notes)


def spread(samples: list[float]) -> float:
    """Of the middle half of the samples, relative to the median."""
    ordered = sorted(samples)
    quarter = len(ordered) // 4
    return (ordered[-1 - quarter] - ordered[quarter]) / bench.median(ordered)


def runnable(contenders: list[str], shape: Shape, dtype: torch.dtype, device: torch.device) -> list[str]:
    q = inputs(shape, dtype, device)[0]
    return [name for name in contenders if missing(name, shape, q) is None]


def overhead(contenders: list[str], dtype: torch.dtype, device: torch.device, repeats: int) -> dict:
    """Microseconds of a call so small that its arithmetic is nothing, on the host's clock."""
    q, k, v, grad_out = inputs(SMALLEST, dtype, device)
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    calls = {}
    for name in runnable(contenders, SMALLEST, dtype, device):
        function = function_of(name, SMALLEST)
        calls[name, "forward"] = torch.no_grad()(functools.partial(function, q, k, v))
        calls[name, "forward, to be differentiated"] = functools.partial(function, *leaves)
        calls[name, "forward + backward"] = lambda function=function: torch.autograd.grad(
            function(*leaves), leaves, grad_out
        )
    samples = {key: [] for key in calls}
    for call in calls.values():
        bench.cpu_clock(call, 20)
    for _ in range(repeats):
        for key, call in calls.items():
            samples[key].append(bench.cpu_clock(call, OVERHEAD_LOOPS) * 1e6)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    names, parts = (list(dict.fromkeys(key[position] for key in calls)) for position in (0, 1))
    rows = [[name, *(f"{bench.median(samples[name, part]):.1f}" for part in parts)] for name in names]
    bench.print_table(f"Call overhead, microseconds per call at {SMALLEST}", ["", *parts], rows)
    return {"shape": SMALLEST._asdict(), "microseconds": {f"{n}, {p}": times for (n, p), times in samples.items()}}


def time_per_token(contenders: list[str], dtype: torch.dtype, device: torch.device, repeats: int) -> dict:
    """The same number of tokens as many small maps or one large map: the time should not change."""
    parts = ("forward", "forward + backward")
    names = runnable(contenders, SAME_TOKENS[0], dtype, device)
    calls = {}
    for shape in SAME_TOKENS:
        tensors = inputs(shape, dtype, device)
        for name in names:
            of_part = calls_of(name, shape, tensors, parts)
            calls |= {(name, part, shape): of_part[part] for part in parts}
    samples = bench.interleaved(calls, repeats, device)
    rows = []
    for name in names:
        for part in parts:
            times = [
                bench.median(samples[name, part, shape]) / (shape.batch * shape.length**2) * 1e9
                for shape in SAME_TOKENS
            ]
            rows.append([name, part, *(f"{t:.1f}" for t in times), f"{max(times) / min(times) - 1:.0%}"])
    maps = [f"{shape.length}x{shape.length}" for shape in SAME_TOKENS]
    heads, head_dim, kernel = SAME_TOKENS[0].heads, SAME_TOKENS[0].head_dim, SAME_TOKENS[0].kernel
    title = f"Nanoseconds per token at equal token count, {heads} heads of {head_dim}, k{kernel}"
    bench.print_table(title, ["", "", *maps, "largest over smallest"], rows)
    return {
        "samples": [{"backend": n, "part": p, "shape": s._asdict(), "seconds": t} for (n, p, s), t in samples.items()]
    }


def half_against_single(
    contenders: list[str], known: dict[str, Shape], names: list[str], device: torch.device, repeats: int
) -> dict:
    parts, rows, record = ("forward", "forward + backward"), [], []
    for label in names:
        shape, calls = known[label], {}
        for dtype in (torch.float32, torch.bfloat16):
            tensors = inputs(shape, dtype, device)
            for name in contenders:
                if missing(name, shape, tensors[0]) is None:
                    of_part = calls_of(name, shape, tensors, parts)
                    calls |= {(name, part, dtype): of_part[part] for part in parts}
        samples = bench.interleaved(calls, repeats, device)
        medians = {key: bench.median(times) for key, times in samples.items()}
        for name in dict.fromkeys(name for name, _, _ in calls):
            row = [label, name]
            for part in parts:
                single, half = (medians.get((name, part, dtype), math.nan) for dtype in (torch.float32, torch.bfloat16))
                row += [f"{single * 1e3:.3f}", f"{half * 1e3:.3f}", f"{single / half:.2f}"]
            rows.append(row)
        record += [
            {"shape": label, "backend": n, "part": p, "dtype": str(d), "seconds": t} for (n, p, d), t in samples.items()
        ]
    headings = ["", ""]
    for part in parts:
        headings += [f"{part}: float32 ms", "bfloat16 ms", "ratio"]
    bench.print_table("bfloat16 against float32", headings, rows)
    return {"samples": record}

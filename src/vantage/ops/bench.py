"""Benchmarks of the ops: python -m vantage.ops.bench <op> [options]; --help after the op's name lists its options.

Backends and peers run side by side in one process, one call of each in turn, so that a change of the machine's load
hits all of them; so do a matrix product and a copy, which give the limits of arithmetic and bandwidth of the same
minutes. On a CPU an untimed call goes before every sample, so that each finds its own data in the caches and not its
neighbour's, and freed memory is kept as in training; on a GPU the cache is flushed. Medians are printed, and the load
before the start: numbers taken on busy cores mean nothing.
A benchmark is a module `vantage.ops.<op>.bench` with SUMMARY, add_arguments(parser) and run(arguments) -> dict.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vantage.malloc import keep_freed_memory

SAMPLE_SECONDS = 2e-3  # a call that is shorter is repeated within a sample, on a CPU
LIMIT_SECONDS = 20.0  # of samples of one call; at least three are taken
GEMM_SIZE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}
FLUSHED_BYTES = 1 << 28  # written before every sample on a GPU: more than its cache holds


def main(argv: Sequence[str] | None = None) -> None:
    names = sorted(path.parent.name for path in Path(__file__).parent.glob("*/bench.py"))
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="python -m vantage.ops.bench", description="Time an op against its peers.")
    subparsers = parser.add_subparsers(dest="op", required=True, metavar="op", help=", ".join(names))
    modules = {name: importlib.import_module(f"vantage.ops.{name}.bench") for name in names}
    for name, module in modules.items():
        options = subparsers.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
        options.add_argument("--repeats", type=int, default=15, help="samples of every call (%(default)s)")
        options.add_argument("--json", type=Path, metavar="FILE", help="write all samples here, too")
        module.add_arguments(options)
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    machine = describe_machine(torch.device(arguments.device))
    print("python -m vantage.ops.bench " + " ".join(argv))
    for line in machine["lines"]:
        print(line, flush=True)
    result = modules[arguments.op].run(arguments)
    if arguments.json:
        record = {"command": argv, "machine": machine, "result": result}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nAll samples: {arguments.json}")


def describe_machine(device: torch.device) -> dict:
    versions = {"Python": platform.python_version(), "torch": torch.__version__}
    try:
        versions["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        versions["triton"] = "not installed"
    if device.type == "cuda":
        versions["CUDA"] = torch.version.cuda
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
    else:
        name = f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {simd_width()}"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    busy = " (busy cores: these timings mean little)" if load > 0.5 else ""
    lines = [
        f"{datetime.date.today()}, {platform.system()}, "
        + ", ".join(f"{key} {value}" for key, value in versions.items()),
        name,
        f"load average before the start: {load:.2f}{busy}",
    ]
    return {"device": name, "versions": versions, "load_average": load, "lines": lines}


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def simd_width() -> str:
    return torch.backends.cpu.get_cpu_capability()


def limits(device: torch.device, dtype: torch.dtype) -> dict[str, Callable]:
    """The matrix product and the copy to interleave with the calls that are compared with them."""
    size = GEMM_SIZE[device.type]
    a, b, product = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(3))
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return {"gemm": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)}


def gemm_rate(seconds: float, device: torch.device) -> float:
    """Operations per second of the `gemm` of `limits`."""
    return 2 * GEMM_SIZE[device.type] ** 3 / seconds


def copy_rate(seconds: float, device: torch.device) -> float:
    """Bytes read and written per second by the `copy` of `limits`."""
    return 2 * COPY_BYTES[device.type] / seconds


def interleaved(calls: dict, repeats: int, device: torch.device) -> dict:
    """Seconds per call of every sample, by the key of the call; the order rotates from round to round."""
    clock = cuda_clock(device) if device.type == "cuda" else cpu_clock
    loops = {}
    for key, call in calls.items():
        call()
        seconds = clock(call, 1)
        loops[key] = 1 if device.type == "cuda" else max(1, math.ceil(SAMPLE_SECONDS / max(seconds, 1e-9)))
    samples = {key: [] for key in calls}
    order = list(calls)
    for _ in range(repeats):
        for key in order:
            if len(samples[key]) < 3 or sum(samples[key]) * loops[key] < LIMIT_SECONDS:
                samples[key].append(clock(calls[key], loops[key]))
        order.append(order.pop(0))
    return samples


def cpu_clock(call: Callable, loops: int) -> float:
    call()
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - start) / loops


def cuda_clock(device: torch.device) -> Callable:
    """Of the work on the GPU alone: its cache is flushed first, and that keeps it busy until the call is queued."""
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)

    def clock(call: Callable, loops: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        start.record()
        for _ in range(loops):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3 / loops

    return clock


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    print(f"\n{title}")
    for row in (headings, ["-" * width for width in widths], *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths))
        print("  ".join((row[0].ljust(len(first)), *others)).rstrip())
    for note in notes:
        print(note)
    sys.stdout.flush()


if __name__ == "__main__":
    main()

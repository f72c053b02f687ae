"""What a model costs: parameters, floating-point operations, images per second, memory.

Conventions
- FLOPs are those torch.utils.flop_counter.FlopCounterMode sees in a forward pass of one image: a multiply-add counts
  as two; matrix products, convolutions and attention count, norms, softmax and elementwise operations do not.
- Images per second: forward passes in inference mode on random input that already lies on the device; after a warm-up
  the median of several repeats, each long enough to be timed.
- Peak memory: weights and buffers, plus input, plus what the first forward pass of that batch size adds at its peak.
  CUDA: torch.cuda.max_memory_allocated. CPU under Linux: the weights' bytes plus the rise of the process's resident
  set (VmHWM of /proc/self/status, reset through /proc/self/clear_refs), after handing freed heap back to the system.
  Elsewhere it is not measured (None).
"""

import ctypes
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vantage.analysis.undisturbed import undisturbed

FLOPS_CONVENTION = "multiply-adds count twice; norms, softmax and elementwise operations do not count"
MEMORY_CUDA = "torch.cuda.max_memory_allocated: weights, input and activations"
MEMORY_CPU = "weights plus the rise of the resident set (VmHWM) over a forward pass: input and activations"
MEMORY_NONE = "not measured on this system"
REPEATS = 7
REPEAT_SECONDS = 0.1
LIMIT_SECONDS = 10.0  # per batch size; at least three repeats are taken


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters; shared ones count once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_trainable in sizes if is_trainable)


def count_flops(model: nn.Module, image: Tensor) -> int:
    """Operations of one forward pass of (B, C, H, W), in eval mode; the model is left as it was."""
    with undisturbed(model), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops()


def benchmark(
    model: nn.Module,
    *,
    in_chans: int,
    image_size: tuple[int, int],
    batch_sizes: Sequence[int],
    device: torch.device | str = "cpu",
    precision: str = "32-true",
    channels_last: bool = False,
) -> dict:
    """All of it, as plain numbers for benchmark.json. A batch size that does not fit the memory is reported so."""
    device = torch.device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.eval().to(device)

    def images(batch_size: int) -> Tensor:
        return torch.randn(batch_size, in_chans, *image_size, device=device).contiguous(memory_format=layout)

    total, trainable = count_parameters(model)
    autocast = precision_context(precision, device)
    rows = []
    with torch.inference_mode(), autocast:
        model(images(1))  # first-use costs (kernel selection, table resizing) belong to no batch size
        for batch_size in batch_sizes:
            row = {"batch_size": int(batch_size)}
            try:
                row["peak_memory_bytes"] = peak_memory(model, lambda size=batch_size: images(size), device)
                row.update(throughput(model, images(batch_size), device))
            except torch.OutOfMemoryError:
                row["error"] = "out of memory"
                torch.cuda.empty_cache()
            rows.append(row)
    return {
        "parameters": total,
        "trainable_parameters": trainable,
        "flops": count_flops(model, images(1)),
        "flops_convention": FLOPS_CONVENTION,
        "input": [in_chans, *image_size],
        "precision": precision,
        "channels_last": channels_last,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peak_memory_convention": memory_convention(device, rows),
        "batches": rows,
    }


def throughput(model: nn.Module, images: Tensor, device: torch.device) -> dict:
    """Images per second: the median of the repeats, with the slowest and the fastest one."""
    seconds = timed(model, images, 1, device)  # warm-up; compilation and autotuning happen here
    seconds = min(seconds, timed(model, images, 2, device) / 2)
    loops = max(1, math.ceil(REPEAT_SECONDS / seconds))
    rates, started = [], time.perf_counter()
    while len(rates) < REPEATS and (len(rates) < 3 or time.perf_counter() - started < LIMIT_SECONDS):
        rates.append(loops * len(images) / timed(model, images, loops, device))
    return {
        "images_per_second": statistics.median(rates),
        "images_per_second_range": [min(rates), max(rates)],
        "repeats": len(rates),
    }


def timed(model: nn.Module, images: Tensor, loops: int, device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    for _ in range(loops):
        model(images)
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(model: nn.Module, make_images: Callable[[], Tensor], device: torch.device) -> int | None:
    """Bytes: weights, input and the peak of one forward pass; the module's docstring says how. None: not measurable."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        model(make_images())
        synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or not release_heap():
        return None
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present resident set
    except OSError:
        return None
    before = resident("VmRSS")
    model(make_images())
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensors.values()) + max(resident("VmHWM") - before, 0)


def memory_convention(device: torch.device, rows: Sequence[dict]) -> str:
    if device.type == "cuda":
        return MEMORY_CUDA
    return MEMORY_NONE if all(row.get("peak_memory_bytes") is None for row in rows) else MEMORY_CPU


def release_heap() -> bool:
    """Hands freed memory back to the system, so that its reuse shows in the resident set; False without glibc."""
    if platform.system() != "Linux":
        return False
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return True


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {key}")


def precision_context(precision: str | int, device: torch.device) -> AbstractContextManager:
    """The autocast that Lightning's trainer.precision means."""
    precision = str(precision)
    if precision in ("bf16-mixed", "bf16"):
        return torch.autocast(device.type, torch.bfloat16)
    if precision in ("16-mixed", "16"):
        return torch.autocast(device.type, torch.float16)
    if precision in ("32-true", "32"):
        return nullcontext()
    raise ValueError(f"trainer.precision={precision} is not benchmarked; use 32-true, bf16-mixed or 16-mixed")


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return f"{device.type} {platform.processor() or platform.machine()}".strip()


def benchmark_table(result: dict, title: str) -> Group:
    """The printed form of what `benchmark` returns."""
    chans, height, width = result["input"]
    table = Table()
    facts = Text(
        f"{result['parameters'] / 1e6:.3f} M parameters ({result['trainable_parameters'] / 1e6:.3f} M trainable), "
        f"{result['flops'] / 1e9:.4g} GFLOPs per {chans}×{height}×{width} image (multiply-adds count twice)\n"
        f"{result['device']}, {result['threads']} threads, {result['precision']}"
        f"{', channels last' if result['channels_last'] else ''}, torch {result['torch']}\n"
        f"peak memory: {result['peak_memory_convention']}"
    )
    for heading in ("batch size", "images/s", "slowest to fastest", "ms per image", "peak memory MiB"):
        table.add_column(heading, justify="right")
    for row in result["batches"]:
        memory = row.get("peak_memory_bytes")
        shown = "not measured" if memory is None else f"{memory / 2**20:.1f}"
        if "error" in row:
            table.add_row(str(row["batch_size"]), row["error"])
            continue
        rate, (slowest, fastest) = row["images_per_second"], row["images_per_second_range"]
        table.add_row(
            str(row["batch_size"]), f"{rate:.4g}", f"{slowest:.4g} to {fastest:.4g}", f"{1000 / rate:.3g}", shown
        )
    return Group(Text(title), table, facts)

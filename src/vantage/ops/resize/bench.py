"""Benchmark of the bicubic resize: python -m vantage.ops.bench resize.

Rivals: F.interpolate with antialias as it comes (shortened kernels at the borders), Pillow for bytes (other rounding);
how far they are from MATLAB's numbers stands beside their time. The limit is the copy that reads the picture and writes
the result once.
"""

import argparse
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vantage.ops import bench
from vantage.ops.resize import resize

SUMMARY = "MATLAB's bicubic resize: ours against F.interpolate and Pillow"
SIZE = (1356, 2040)  # of DIV2K's pictures
TARGET_SECONDS = {"x1/4 float32": 0.06, "x1/4 uint8": 0.25, "x4 float32": 1.2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), default=SIZE, help="of the picture %(default)s"
    )


def run(arguments: argparse.Namespace) -> dict:
    device = torch.device(arguments.device)
    height, width = arguments.size
    with torch.random.fork_rng():
        torch.manual_seed(0)
        picture = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    result = {}
    for scale in (1 / 4, 1 / 3, 1 / 2, 4):
        for kind in (torch.float32, torch.uint8):
            if scale > 1 and kind == torch.uint8:
                continue
            x = picture.to(device, kind)
            name = f"x{'1/' if scale < 1 else ''}{round(max(scale, 1 / scale))} {str(kind).removeprefix('torch.')}"
            result[name] = compare(name, x, scale, device, arguments.repeats)
    return result


def calls_for(x: Tensor, scale: float) -> dict[str, Callable[[], Tensor]]:
    size = [round(side * scale) for side in x.shape[-2:]]
    calls = {
        "ours": lambda: resize(x, scale),
        "F.interpolate": lambda: F.interpolate(x[None], size, mode="bicubic", antialias=True)[0],
    }
    if x.dtype == torch.uint8 and x.device.type == "cpu":
        pillow = importlib.import_module("PIL.Image")
        image = pillow.fromarray(x.permute(1, 2, 0).numpy())
        calls["Pillow"] = lambda: image.resize(size[::-1], pillow.Resampling.BICUBIC)
    return calls


def compare(name: str, x: Tensor, scale: float, device: torch.device, repeats: int) -> dict:
    calls = calls_for(x, scale)
    samples = bench.interleaved(calls | {"copy": bench.limits(device, torch.float32)["copy"]}, repeats, device)
    made = {each: as_tensor(call()) for each, call in calls.items()}
    moved = sum(one.numel() * one.element_size() for one in (x, made["ours"]))
    least = moved / bench.copy_rate(bench.median(samples["copy"]), device)
    ours = bench.median(samples["ours"])
    rows = []
    for each, out in made.items():
        seconds = bench.median(samples[each])
        error = error_at_the_corner(x, scale, out)
        rows.append([each, f"{seconds * 1e3:.1f}", f"{seconds / ours:.2f}", f"{least / seconds:.0%}", f"{error:.2g}"])
    notes = [f"goal {TARGET_SECONDS[name] * 1e3:.0f} ms"] if name in TARGET_SECONDS else []
    height, width = x.shape[-2:]
    headings = ["", "ms", "times ours", "of the copy's rate", "levels from MATLAB"]
    bench.print_table(f"{name} of 3x{height}x{width}", headings, rows, notes)
    return {"samples": samples, "rows": rows}


def as_tensor(picture: Any) -> Tensor:
    """Of Pillow's pictures the bytes."""
    if isinstance(picture, Tensor):
        return picture
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1)


def error_at_the_corner(x: Tensor, scale: float, out: Tensor) -> float:
    """The largest difference from the reference in the upper left, whose pixels beyond it do not reach."""
    side = 256
    truth = resize(x[:, :side, :side], scale, backend="reference").double()
    kept = round((side - 16) * scale)
    return float((out[:, :kept, :kept].double() - truth[:, :kept, :kept]).abs().max())

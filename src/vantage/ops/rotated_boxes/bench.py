"""Benchmark of rotated boxes: python -m vantage.ops.bench rotated_boxes.

Peers, where installed: torchvision's `box_iou(fmt="cxcywhr")`, a compiled kernel without gradients, and shapely, whose
polygons are exact: what is timed is also compared with it. FLOPs are those of the pairs whose circles meet.
"""

import argparse
import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vantage.ops import bench
from vantage.ops.rotated_boxes import BACKENDS, rotated_iou, rotated_nms, to_corners, to_cxcywhr_degrees
from vantage.ops.rotated_boxes.dispatch import backend_function
from vantage.ops.rotated_boxes.reference import may_overlap

SUMMARY = "rotated boxes: IoU and NMS, backends against torchvision and shapely"
PEERS = ("torchvision", "shapely")
FLOPS_OF_PAIR = 200  # additions, multiplications, comparisons and divisions of one overlap, in float64
SIZES = {"scattered": 2000, "overlapping": 2000, "jittered": 2000, "pairs": 20000, "nms": 10000}
TARGET_SECONDS = {"scattered": 0.1, "overlapping": 0.5, "nms": 0.3}
BOXES_OF_OBJECT = 3
CHECKED_PAIRS = 20000  # per case, against shapely
JITTER = 1e-5  # px and radians
WRONG_FROM = 1e-4  # of an IoU


class Case(NamedTuple):
    title: str
    a: Tensor
    b: Tensor
    pairs: int  # overlaps to compute
    calls: dict[str, Callable]
    checked: tuple[Tensor, Tensor] | None = None  # indices of pairs to compare with shapely, else random ones


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", help=f"comma-separated, of {', '.join(SIZES)} (all)")
    parser.add_argument("--backends", help=f"comma-separated, of {', '.join((*BACKENDS, *PEERS))} (all)")


def run(arguments: argparse.Namespace) -> dict:
    device = torch.device(arguments.device)
    cases = pick(arguments.cases, tuple(SIZES), "cases")
    contenders = pick(arguments.backends, (*BACKENDS, *PEERS), "backends")
    notes, result = [], {}
    for name in tuple(contenders):
        why_not = missing(name, device)
        if why_not:
            notes.append(f"{name}: {why_not}")
            contenders.remove(name)
    if not contenders:
        raise SystemExit("nothing to time: " + "; ".join(notes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in cases:
            result[name] = compare(name, CASES[name](SIZES[name], contenders, device), device, arguments.repeats, notes)
    return result


def pick(asked: str | None, known: tuple[str, ...], option: str) -> list[str]:
    names = list(known) if asked is None else asked.split(",")
    for name in names:
        if name not in known:
            raise SystemExit(f"--{option}: {name!r} is unknown; use {', '.join(known)}")
    return names


def missing(name: str, device: torch.device) -> str | None:
    if name in BACKENDS:
        try:
            backend_function("rotated_iou", name, torch.empty(0, device=device))
        except RuntimeError as error:
            return str(error)
        return None
    if name == "shapely" and device.type != "cpu":
        return "computes on the CPU"
    try:
        module = importlib.import_module(name)
        if name == "torchvision":
            module.ops.box_iou(torch.zeros(1, 5), torch.zeros(1, 5), fmt="cxcywhr")
    except ImportError:
        return "not installed"
    except (TypeError, ValueError):
        return f"{module.__version__} has no box_iou of rotated boxes"
    return None


def boxes_on(canvas: float, count: int, device: torch.device) -> Tensor:
    """Sides of 16 to 64 px, any angle."""
    centres, sides = torch.rand(count, 2) * canvas, 16 * 4 ** torch.rand(count, 2)
    angles = (torch.rand(count, 1) - 0.5) * torch.pi
    return torch.cat((centres, sides, angles), 1).to(device)


def scattered(count: int, contenders: list[str], device: torch.device) -> Case:
    a, b = boxes_on(1024, count, device), boxes_on(1024, count, device)
    return pairwise(f"IoU of {count} x {count} boxes scattered over 1,024 px", a, b, contenders)


def overlapping(count: int, contenders: list[str], device: torch.device) -> Case:
    a, b = boxes_on(8, count, device), boxes_on(8, count, device)
    return pairwise(f"IoU of {count} x {count} boxes that all overlap", a, b, contenders)


def jittered(count: int, contenders: list[str], device: torch.device) -> Case:
    """Every box and its copy moved by next to nothing: where lists of intersection points go wrong."""
    a = boxes_on(1024, count, device)
    index = torch.arange(count)
    title = f"IoU of {count} x {count} boxes and their copies jittered by {JITTER:g}, of which the errors are"
    return pairwise(title, a, a + JITTER * torch.randn_like(a), contenders)._replace(checked=(index, index))


def pairwise(title: str, a: Tensor, b: Tensor, contenders: list[str]) -> Case:
    calls = {}
    for name in contenders:
        if name in BACKENDS:
            calls[name] = lambda name=name: rotated_iou(a, b, backend=name)
        elif name == "torchvision":
            calls[name] = torchvision_pairwise(a, b)
        elif may_overlap(a, b).float().mean() < 0.1:  # all pairs would take it minutes: the case `pairs` has its rate
            calls[name] = lambda: shapely_pairwise(a, b)
    return Case(title, a, b, int(may_overlap(a, b).sum()), calls)


def torchvision_pairwise(a: Tensor, b: Tensor) -> Callable:
    box_iou = importlib.import_module("torchvision").ops.box_iou
    return functools.partial(box_iou, to_cxcywhr_degrees(a), to_cxcywhr_degrees(b), fmt="cxcywhr")


def pairs(count: int, contenders: list[str], device: torch.device) -> Case:
    a, b = boxes_on(8, count, device), boxes_on(8, count, device)
    calls = {}
    for name in contenders:
        if name in BACKENDS:
            calls[name] = lambda name=name: rotated_iou(a, b, aligned=True, backend=name)
            calls[f"{name}, forward + backward"] = lambda name=name: forward_backward(name, a, b)
        elif name == "shapely":
            calls[name] = lambda: shapely_iou(a, b)
    return Case(f"IoU of {count} aligned pairs that overlap", a, b, count, calls)


def forward_backward(backend: str, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    a, b = a.detach().requires_grad_(), b.detach().requires_grad_()
    return torch.autograd.grad(rotated_iou(a, b, aligned=True, backend=backend).sum(), (a, b))


def nms(count: int, contenders: list[str], device: torch.device) -> Case:
    objects = boxes_on(4096, -(-count // BOXES_OF_OBJECT), device)
    boxes = objects.repeat_interleave(BOXES_OF_OBJECT, 0)[:count]
    boxes = boxes + torch.randn_like(boxes) * boxes.new_tensor((1.0, 1.0, 1.0, 1.0, 0.03))
    scores, labels = torch.rand(count, device=device), torch.randint(15, (len(objects),), device=device)
    labels = labels.repeat_interleave(BOXES_OF_OBJECT)[:count]
    calls = {
        name: lambda name=name: rotated_nms(boxes, scores, 0.1, labels=labels, backend=name)
        for name in contenders
        if name in BACKENDS
    }
    title = f"NMS of {count} boxes, {BOXES_OF_OBJECT} per object, 15 classes, IoU 0.1"
    return Case(title, boxes, boxes, 0, calls)


CASES = {"scattered": scattered, "overlapping": overlapping, "jittered": jittered, "pairs": pairs, "nms": nms}


def shapely_polygons(boxes: Tensor):
    return importlib.import_module("shapely").polygons(to_corners(boxes.double()).cpu().numpy())


def shapely_pairwise(a: Tensor, b: Tensor) -> Tensor:
    shapely = importlib.import_module("shapely")
    first, second = shapely_polygons(a), shapely_polygons(b)
    i, j = shapely.STRtree(second).query(first)
    out = torch.zeros(len(a), len(b), dtype=torch.float64)
    out[torch.from_numpy(i), torch.from_numpy(j)] = torch.from_numpy(polygon_iou(shapely, first[i], second[j]))
    return out


def shapely_iou(a: Tensor, b: Tensor) -> Tensor:
    """Aligned, (N,) float64."""
    shapely = importlib.import_module("shapely")
    return torch.from_numpy(polygon_iou(shapely, shapely_polygons(a), shapely_polygons(b)))


def polygon_iou(shapely, first, second):
    common = shapely.area(shapely.intersection(first, second))
    return common / (shapely.area(first) + shapely.area(second) - common)


def compare(name: str, case: Case, device: torch.device, repeats: int, notes: list[str]) -> dict:
    calls = bench.limits(device, torch.float64) | case.calls
    errors = {} if name == "nms" else errors_of(case, device)
    samples = bench.interleaved(calls, repeats, device)
    gemm = bench.gemm_rate(bench.median(samples.pop("gemm")), device)
    copy = bench.copy_rate(bench.median(samples.pop("copy")), device)
    medians = {key: bench.median(times) for key, times in samples.items()}
    headings = [
        "",
        "ms",
        "native is faster by",
        "ns per overlap",
        "% gemm",
        "largest error",
        f"wrong by {WRONG_FROM:g}",
    ]
    rows = []
    for key, seconds in medians.items():
        rival = f"native{key.partition(',')[1]}{key.partition(',')[2]}"
        row = [key, f"{seconds * 1e3:.2f}", f"{seconds / medians[rival]:.1f}" if rival in medians else "-"]
        if case.pairs:
            row.append(f"{seconds / case.pairs * 1e9:.0f}")
            row.append("-" if "backward" in key else f"{100 * case.pairs * FLOPS_OF_PAIR / seconds / gemm:.1f}")
            row += errors.get(key, ["-", "-"])
        else:
            row += ["-"] * 4
        rows.append(row)
    said = [*notes, f"float64 matrix product {gemm / 1e9:.0f} GFLOP/s, copy {copy / 1e9:.1f} GB/s"]
    if case.pairs:
        said.append(f"{case.pairs} pairs whose circles meet")
    if name in TARGET_SECONDS and "native" in medians:
        said.append(f"wanted of native: {TARGET_SECONDS[name] * 1e3:.0f} ms")
    bench.print_table(case.title, headings, rows, said)
    return {
        "title": case.title,
        "overlaps": case.pairs,
        "gemm_flops_per_second": gemm,
        "copy_bytes_per_second": copy,
        "seconds": [{"backend": key, "samples": times} for key, times in samples.items()],
        "notes": said,
    }


def errors_of(case: Case, device: torch.device) -> dict[str, list[str]]:
    """Of each contender against shapely on a sample of the pairs: the largest, and how many are wrong."""
    if missing("shapely", device):
        return {}
    outputs = {key: call() for key, call in case.calls.items() if "backward" not in key}
    is_aligned = next(iter(outputs.values())).dim() == 1
    if is_aligned:
        i = j = torch.arange(len(case.a))
    else:
        i, j = case.checked or (torch.randint(len(boxes), (CHECKED_PAIRS,)) for boxes in (case.a, case.b))
    exact, rows = shapely_iou(case.a[i], case.b[j]), {}
    for key, out in outputs.items():
        error = ((out if is_aligned else out[i, j]).double() - exact).abs()
        rows[key] = [f"{error.max():.1g}", f"{int((error > WRONG_FROM).sum())} of {len(error)}"]
    return rows

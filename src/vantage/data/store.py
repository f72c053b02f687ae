"""Where a split's pictures come from: memory or files. All read uint8 (C, H, W) tensors by index."""

import logging
import mmap
import os
import time
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vantage.data.errors import DataError

log = logging.getLogger(__name__)

Decode = Callable[[str], Tensor]
CHUNK = 64  # files a decoding process takes at a time


class FileStore:
    """Decodes at every read."""

    def __init__(self, paths: list[str], decode: Decode) -> None:
        self.paths, self.decode = paths, decode

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Tensor:
        return self.decode(self.paths[index])


class MemoryStore:
    """Pictures of one size in one tensor, uint8 (N, C, H, W): a batch is one indexing."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> Tensor:
        return self.pixels[index]


class PackedStore:
    """Pictures of many sizes behind each other in one buffer, uint8 (bytes,); shapes (N, 3), starts (N,).

    One tensor, not a list of them: worker processes forked from this one share its pages, while the reference counts
    of a list's items would be written by every reader and so copied into each worker.
    """

    def __init__(self, pixels: Tensor, shapes: Tensor, starts: Tensor) -> None:
        self.pixels, self.shapes, self.starts = pixels, shapes, starts

    def __len__(self) -> int:
        return len(self.shapes)

    def read(self, index: int) -> Tensor:
        shape, start = self.shapes[index], int(self.starts[index])
        return self.pixels[start : start + int(shape.prod())].view(shape.tolist())


Store = FileStore | MemoryStore | PackedStore


def pack(pictures: Sequence[Tensor]) -> MemoryStore | PackedStore:
    """Pictures (C, H, W) in memory as one buffer."""
    shapes = torch.tensor([list(picture.shape) for picture in pictures])
    if bool((shapes == shapes[0]).all()):
        return MemoryStore(torch.stack(list(pictures)))
    lengths = shapes.prod(1)
    return PackedStore(torch.cat([picture.flatten() for picture in pictures]), shapes, lengths.cumsum(0) - lengths)


def estimate_bytes(paths: list[str], in_chans: int, size: tuple[int, int] | None) -> int:
    """Memory the decoded pictures would take: exact for a fixed size, else estimated from up to 256 file headers."""
    if size is not None:
        return len(paths) * in_chans * size[0] * size[1]
    sample = paths[:: max(1, len(paths) // 256)][:256]
    pixels = [height * width for height, width in map(header_size, sample) if height]
    return int(sum(pixels) / max(1, len(pixels)) * len(paths) * in_chans)


def header_size(path: str) -> tuple[int, int]:
    """(height, width) of an image file; (0, 0) if it cannot be told, which decoding will explain."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception:
        return 0, 0


def decode_all(
    paths: list[str], decode: Decode, in_chans: int, size: tuple[int, int] | None, what: str, processes: int
) -> tuple[MemoryStore | PackedStore, dict[int, str]]:
    """Decode every file once, in parallel -> the store of the good ones and {index: reason} of the bad ones."""
    started = time.perf_counter()
    sizes = [size] * len(paths) if size is not None else [header_size(path) for path in paths]
    shapes = torch.tensor([(in_chans, *each) for each in sizes])  # (N, 3)
    lengths = shapes.prod(1)
    starts = lengths.cumsum(0) - lengths
    # An anonymous shared mapping: children forked from here write into it, and /dev/shm, often 64 MB, has no say.
    pixels = torch.frombuffer(mmap.mmap(-1, max(1, int(lengths.sum()))), dtype=torch.uint8)
    target = PackedStore(pixels, shapes, starts)

    can_fork = "fork" in torch.multiprocessing.get_all_start_methods()
    workers = processes if can_fork and processes > 1 and len(paths) >= 16 * CHUNK else 0
    loader = DataLoader(
        _Chunks(paths, decode, target),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    bad: dict[int, str] = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"decoding {what}", total=len(paths))
        for errors in loader:
            bad |= errors
            progress.advance(bar, CHUNK)
    log.info("decoded %s in %.1f s", what, time.perf_counter() - started)

    good = torch.tensor([i for i in range(len(paths)) if i not in bad], dtype=torch.int64)
    shapes, starts = shapes[good], starts[good]
    if len(good) and bool((shapes == shapes[0]).all()):
        if not bad:
            return MemoryStore(pixels.view(len(good), *shapes[0].tolist())), bad
        return MemoryStore(torch.stack([target.read(i) for i in good.tolist()])), bad
    return PackedStore(pixels, shapes, starts), bad


class _Chunks(Dataset):
    """Item n decodes the n-th chunk of files into `target` and is {index: reason} of its bad ones."""

    def __init__(self, paths: list[str], decode: Decode, target: PackedStore) -> None:
        self.paths, self.decode, self.target = paths, decode, target

    def __len__(self) -> int:
        return -(-len(self.paths) // CHUNK)

    def __getitem__(self, number: int) -> dict[int, str]:
        errors = {}
        for index in range(number * CHUNK, min((number + 1) * CHUNK, len(self.paths))):
            path = self.paths[index]
            try:
                picture, place = self.decode(path), self.target.read(index)
                if picture.shape != place.shape:
                    raise DataError(f"{path}: is not of the size that its header tells")
                place.copy_(picture)
            except DataError as error:
                errors[index] = str(error)
        return errors


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

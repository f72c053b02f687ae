"""Where a split's pictures come from: memory or files. All read uint8 (C, H, W) tensors by index."""

import logging
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
    """Pictures of many sizes behind each other in one buffer.

    One tensor, not a list of them: worker processes forked from this one share its pages, while the reference counts
    of a list's items would be written by every reader and so copied into each worker.
    """

    def __init__(self, pictures: Sequence[Tensor]) -> None:
        self.shapes = torch.tensor([tuple(picture.shape) for picture in pictures])  # (N, 3)
        self.ends = self.shapes.prod(1).cumsum(0)
        self.pixels = torch.cat([picture.flatten() for picture in pictures])

    def __len__(self) -> int:
        return len(self.shapes)

    def read(self, index: int) -> Tensor:
        shape = self.shapes[index].tolist()
        end = int(self.ends[index])
        return self.pixels[end - shape[0] * shape[1] * shape[2] : end].view(shape)


Store = FileStore | MemoryStore | PackedStore


def decoded_bytes(paths: list[str], in_chans: int, size: tuple[int, int] | None) -> int:
    """Memory the decoded pictures would take: exact for a fixed size, else estimated from up to 256 file headers."""
    if size is not None:
        return len(paths) * in_chans * size[0] * size[1]
    sample = paths[:: max(1, len(paths) // 256)][:256]
    pixels = []
    for path in sample:
        try:
            with Image.open(path) as image:
                pixels.append(image.width * image.height)
        except Exception:  # reported with its name when it is decoded
            continue
    return int(sum(pixels) / max(1, len(pixels)) * len(paths) * in_chans)


def decode_all(paths: list[str], decode: Decode, what: str, processes: int) -> tuple[Store, dict[int, str]]:
    """Decode every file once, in parallel -> the store of the good ones and {index: reason} of the bad ones."""
    started = time.perf_counter()
    loader = DataLoader(
        _Chunks(paths, decode),
        batch_size=None,
        num_workers=processes if len(paths) >= 4 * CHUNK and processes > 1 else 0,
        multiprocessing_context=None,
    )
    bad: dict[int, str] = {}
    pixels: Tensor | None = None  # filled while all pictures have one size
    pictures: list[Tensor] = []
    filled = 0
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"decoding {what}", total=len(paths))
        for number, (decoded, errors) in enumerate(loader):
            bad |= {number * CHUNK + position: reason for position, reason in errors.items()}
            if isinstance(decoded, Tensor):
                if pixels is None and not pictures:
                    pixels = decoded.new_empty(len(paths), *decoded.shape[1:])
                if pixels is not None and decoded.shape[1:] == pixels.shape[1:]:
                    pixels[filled : filled + len(decoded)] = decoded
                    filled += len(decoded)
                    decoded = []
            if len(decoded):
                if pixels is not None:
                    pictures, pixels = list(pixels[:filled]), None
                pictures.extend(picture.clone() for picture in decoded)  # a clone leaves the worker's shared memory
            progress.advance(bar, min(CHUNK, len(paths) - number * CHUNK))
    log.info("decoded %s in %.1f s", what, time.perf_counter() - started)
    if pixels is not None:
        return MemoryStore(pixels[:filled]), bad
    if not pictures:
        return MemoryStore(torch.empty(0, 1, 1, 1, dtype=torch.uint8)), bad
    return PackedStore(pictures), bad


CHUNK = 64


class _Chunks(Dataset):
    def __init__(self, paths: list[str], decode: Decode) -> None:
        self.paths, self.decode = paths, decode

    def __len__(self) -> int:
        return -(-len(self.paths) // CHUNK)

    def __getitem__(self, number: int) -> tuple[Tensor | list[Tensor], dict[int, str]]:
        pictures, errors = [], {}
        for position, path in enumerate(self.paths[number * CHUNK : (number + 1) * CHUNK]):
            try:
                pictures.append(self.decode(path))
            except DataError as error:
                errors[position] = str(error)
        same = len({picture.shape for picture in pictures}) == 1
        return (torch.stack(pictures) if same else pictures), errors


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Decoded pictures, kept in memory or in files that are mapped into it.

A window of a mapped picture costs the pages that its rows lie in, so random patches of a data set that is larger than
the memory need no decoding of whole pictures. A file holds the bytes of one picture, (H, W, C), and nothing else: a
window is then one stretch of the file and not one per channel. It is up to date if it has the length that the
picture's header tells and the source's time of change; so that what was interrupted goes on, and other runs, scales
and data sets use what is there.
"""

import contextlib
import hashlib
import math
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from vantage.data.errors import DataError
from vantage.data.store import PackedStore, usable_cores

Shape = tuple[int, int, int]  # (C, H, W)

COARSEST_TIME_S = 2  # of file systems that there are


class Pictures(Protocol):
    """uint8 pictures of known shapes, each to be put once."""

    shapes: Sequence[Shape]

    def has(self, index: int) -> bool: ...

    def put(self, index: int, picture: Tensor) -> None: ...

    def read(self, index: int) -> Tensor:
        """uint8 (C, H, W), a view, not to be written to."""

    def keep(self, indices: Sequence[int]) -> "Pictures": ...


class PicturesInMemory:
    def __init__(self, shapes: Sequence[Shape]) -> None:
        lengths = torch.tensor(shapes).prod(1)
        pixels = torch.empty(int(lengths.sum()), dtype=torch.uint8)
        self.shapes, self.store = shapes, PackedStore(pixels, torch.tensor(shapes), lengths.cumsum(0) - lengths)

    def has(self, index: int) -> bool:
        return False

    def put(self, index: int, picture: Tensor) -> None:
        self.store.read(index).copy_(picture)

    def read(self, index: int) -> Tensor:
        return self.store.read(index)

    def keep(self, indices: Sequence[int]) -> "PicturesInMemory":
        kept = object.__new__(PicturesInMemory)
        kept.shapes = [self.shapes[i] for i in indices]
        kept.store = PackedStore(self.store.pixels, self.store.shapes[indices], self.store.starts[indices])
        return kept


class PicturesOnDisk:
    """files: where the decoded pictures are or will be; sources: the files that they are made from."""

    def __init__(self, files: Sequence[Path], sources: Sequence[str], shapes: Sequence[Shape]) -> None:
        self.files, self.sources, self.shapes = files, sources, shapes

    def has(self, index: int) -> bool:
        try:
            there, source = self.files[index].stat(), os.stat(self.sources[index])
        except OSError:
            return False
        is_complete = there.st_size == math.prod(self.shapes[index])
        return is_complete and abs(there.st_mtime - source.st_mtime) < COARSEST_TIME_S

    def put(self, index: int, picture: Tensor) -> None:
        """Raises: OSError"""
        file, source = self.files[index], os.stat(self.sources[index])
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}.part")  # another process may be at the same picture
        try:
            part.write_bytes(picture.permute(1, 2, 0).numpy().tobytes())
            os.utime(part, ns=(source.st_atime_ns, source.st_mtime_ns))
            part.replace(file)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def read(self, index: int) -> Tensor:
        channels, height, width = self.shapes[index]
        try:  # opened anew each time: a map that is kept keeps its file open, and a process may have 1,024
            # "c": private to this process, because torch warns of arrays that must not be written to
            pixels = np.memmap(self.files[index], np.uint8, mode="c", shape=(height, width, channels))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.files[index]}: was a decoded picture and is gone or cut ({error})") from None
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def keep(self, indices: Sequence[int]) -> "PicturesOnDisk":
        return PicturesOnDisk(*([values[i] for i in indices] for values in (self.files, self.sources, self.shapes)))

    def missing(self) -> dict[Path, int]:
        """Bytes still to be written, per folder."""
        sizes: dict[Path, int] = defaultdict(int)
        for i, file in enumerate(self.files):
            if not self.has(i):
                sizes[file.parent] += math.prod(self.shapes[i])
        return sizes


def require_room(places: Sequence[PicturesOnDisk]) -> None:
    """Raises: DataError if what is still missing cannot be written."""
    needed: dict[int, int] = defaultdict(int)  # per file system
    for folder, size in (item for place in places for item in place.missing().items()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f"{os.getpid()}.part"
            probe.touch()
            probe.unlink()
            disk, free = folder.stat().st_dev, shutil.disk_usage(folder).free
        except OSError as error:
            raise DataError(_cannot_write(folder, error.strerror or str(error))) from None
        needed[disk] += size
        if free < needed[disk]:
            raise DataError(_cannot_write(folder, f"{needed[disk] / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"))


def decoded_file(source: str, kind: str, decoded_dir: Path | None) -> Path:
    """Where a file's decoded picture is: in `.decoded` beside it, or below decoded_dir, in a folder for its folder."""
    path = Path(source).absolute()
    if decoded_dir is None:
        return path.parent / ".decoded" / f"{path.name}.{kind}"
    place = hashlib.sha256(str(path.parent).encode()).hexdigest()[:8]
    return decoded_dir / f"{path.parent.name}-{place}" / f"{path.name}.{kind}"


def decode_into(
    read: Callable[[int], Sequence[Tensor]], names: Sequence[str], places: Sequence[Pictures], what: str
) -> dict[int, str]:
    """Puts the pictures read(index), one per place, wherever one is missing -> {index: reason} of the bad ones.

    In threads, for decoders let go of Python's lock. The order is another one in every process, so that several
    which fill the same files share the work.
    """
    bad: dict[int, str] = {}
    order = list(range(len(names)))
    random.Random(os.getpid()).shuffle(order)
    console = Console(stderr=True)

    def one(index: int) -> None:
        missing = [place for place in places if not place.has(index)]
        if not missing:
            return
        try:
            pictures = read(index)
        except DataError as error:
            bad[index] = str(error)
            return
        for place, picture in zip(places, pictures):
            if tuple(picture.shape) != place.shapes[index]:
                bad[index] = f"{names[index]}: is not of the size that its header tells"
            elif place in missing:
                place.put(index, picture)

    with (
        ThreadPoolExecutor(usable_cores()) as pool,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task(f"decoding {what}", total=len(order))
        try:
            for _ in pool.map(one, order):
                progress.advance(bar)
        except OSError as error:
            raise DataError(_cannot_write(error.filename, error.strerror or str(error))) from None
    return dict(sorted(bad.items()))


def _cannot_write(folder: Path | str | None, reason: str) -> str:
    return (
        f"decoded pictures cannot be written to {folder} ({reason}); give data.decoded_dir=FOLDER on a disk with room, "
        "data.cache=true to keep them in memory, or data.cache=false to decode at every read"
    )

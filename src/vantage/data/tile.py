"""Cuts large pictures and their labels into tiles to train on.

    python -m vantage.data.tile SOURCE OUT [--size 1024] [--overlap 200] [--rates 0.5 1.0 1.5] [--jobs N]

SOURCE and OUT are folders with images/ and labelTxt/ (vantage.data.rotated_folder), or images/ alone. A rate resizes
the picture: windows of size / rate pixels are cut and become tiles of size x size, called name__window__x___y.
Windows overlap, and the last one is shifted inward; a window beyond a small picture is padded with a grey.

A tile's labels are the quadrilaterals that it shows, never clipped. One of which less than --min-share lies inside is
flagged 2: training ignores it, as neither an object nor background.

The work goes on where it was interrupted: each picture leaves a record of what was made of it, and is done again only
if it, its labels or the options have changed. Running it twice changes nothing.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from vantage.data.dota_labels import CUT, DotaLabels, DotaObject, read_labels, write_labels
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.rotated_files import IMAGES, list_images, pair_files, read_large_image
from vantage.data.rotated_geometry import window_share
from vantage.data.store import usable_cores
from vantage.data.tiles import Tile, windows

RECORDS = ".records"  # one JSON file per picture, and options.json
FILL = (104, 116, 124)


@dataclass(frozen=True)
class Options:
    """What the tiles depend on, beside the pictures."""

    size: int = 1024
    overlap: int = 200  # pixels of the tile
    rates: tuple[float, ...] = (1.0,)
    min_share: float = 0.7  # of an object, for it to be one of the tile
    min_filled: float = 0.6  # of a tile, if there is another that is
    fill: tuple[int, int, int] = FILL
    labels: str = "labelTxt"

    def __post_init__(self) -> None:
        if self.size < 16:
            raise DataError(f"--size {self.size} is too small; tiles have 16 pixels or more")
        if not 0 <= self.overlap < self.size:
            raise DataError(f"--overlap {self.overlap} does not fit tiles of {self.size}; it is in 0..{self.size - 1}")
        for rate in self.rates:
            if not 0 < rate <= self.size / 16:
                raise DataError(f"--rates {rate:g} is not in 0..{self.size / 16:g}")
        if not self.rates:
            raise DataError("--rates is empty; give one or more, 1.0 for the picture as it is")


@dataclass
class Counts:
    pictures: int = 0
    unchanged: int = 0
    tiles: int = 0
    objects: int = 0
    cut: int = 0
    bad: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.tiles:,} tiles of {self.pictures:,} pictures ({self.unchanged:,} were done before), "
        text += f"{self.objects:,} objects and {self.cut:,} that a tile cuts"
        return f"{text}; {len(self.bad):,} bad samples were left out" if self.bad else text


def tile_folder(
    source: str | Path, out: str | Path, options: Options, *, jobs: int = 1, skip_bad: bool = False
) -> Counts:
    """Makes the tiles of every picture in source/images.

    Raises: DataError for bad samples, after all others are done, unless skip_bad counts them; and if `out` holds
    tiles of other options.
    """
    source, out = Path(source), Path(out)
    with_labels = (source / options.labels).is_dir()
    if with_labels:
        pairs, bad = pair_files(source, options.labels)
    elif (source / IMAGES).is_dir():
        listed = list_images(source / IMAGES).values()
        pairs = [(paths[0], None) for paths in listed]
        bad = [
            f"{other}: has the same name as {first}, and tiles are called by it"
            for first, *more in listed
            for other in more
        ]
    else:
        raise DataNotFoundError(f"there is no folder {(source / IMAGES).absolute()}; pictures are expected in it")
    for folder in (IMAGES, RECORDS, *([options.labels] if with_labels else [])):
        (out / folder).mkdir(parents=True, exist_ok=True)
    _claim(out, options)

    total = Counts(bad=list(bad))
    console = Console(stderr=True)
    work = partial(tile_picture, out=out, options=options)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("tiling", total=len(pairs))
        for counts in _map(work, pairs, jobs):
            for field in dataclasses.fields(Counts):
                setattr(total, field.name, getattr(total, field.name) + getattr(counts, field.name))
            progress.advance(bar)
    if total.bad and not skip_bad:
        more = f" (and {len(total.bad) - 1} more)" if len(total.bad) > 1 else ""
        raise DataError(f"{total.bad[0]}{more}; --skip-bad leaves such samples out")
    return total


def tile_picture(pair: tuple[str, str | None], out: Path, options: Options) -> Counts:
    """Makes the tiles of one picture, unless its record says that they are there."""
    image_path, label_path = pair
    name = Path(image_path).stem
    record_path = out / RECORDS / f"{name}.json"
    state = _state(image_path, label_path)
    record = _read_json(record_path)
    if record is not None and record["state"] == state and all((out / file).is_file() for file in record["files"]):
        return Counts(1, 1, record["tiles"], record["objects"], record["cut"], record["bad"])
    try:
        labels = read_labels(label_path) if label_path else None
        pixels = read_large_image(image_path, 3).permute(1, 2, 0).numpy()
    except DataError as error:
        return Counts(bad=[str(error)])
    counts = Counts(pictures=1, bad=list(labels.bad) if labels else [])
    files = []
    for tile in tiles_of(name, *pixels.shape[:2], options):
        files.append(f"{IMAGES}/{tile}.png")
        _write(out / files[-1], partial(cut_pixels(pixels, tile, options).save, format="PNG", compress_level=3))
        counts.tiles += 1
        if labels is None:
            continue
        shown = cut_labels(labels, tile, options)
        files.append(f"{options.labels}/{tile}.txt")
        _write(out / files[-1], partial(write_labels, labels=shown))
        counts.cut += sum(each.difficult == CUT for each in shown.objects)
        counts.objects += sum(each.difficult != CUT for each in shown.objects)
    for stale in set(record["files"] if record else ()) - set(files):
        (out / stale).unlink(missing_ok=True)
    content = {"state": state, "files": files} | {k: getattr(counts, k) for k in ("tiles", "objects", "cut", "bad")}
    _write(record_path, lambda path: path.write_text(json.dumps(content)))  # last: it says that all is there
    return counts


def tiles_of(name: str, height: int, width: int, options: Options) -> list[Tile]:
    """The windows of every rate that the picture fills well; if it fills none, those it fills best."""
    tiles = []
    for rate in options.rates:
        size = int(options.size / rate)
        corners = windows(height, width, size, min(int(options.overlap / rate), size - 1))
        filled = [(min(x + size, width) - x) * (min(y + size, height) - y) / size**2 for x, y in corners]
        least = min(options.min_filled, max(filled))
        tiles += [Tile(name, size, x, y) for (x, y), share in zip(corners, filled) if share >= least]
    return tiles


def cut_pixels(pixels: np.ndarray, tile: Tile, options: Options) -> Image.Image:
    """The window of a picture uint8 (H, W, 3) as a picture of options.size."""
    part = pixels[tile.y : tile.y + tile.size, tile.x : tile.x + tile.size]
    if part.shape[:2] != (tile.size, tile.size):
        padded = np.full((tile.size, tile.size, 3), options.fill, dtype=np.uint8)
        padded[: part.shape[0], : part.shape[1]] = part
        part = padded
    image = Image.fromarray(np.ascontiguousarray(part))
    if tile.size != options.size:
        image = image.resize((options.size, options.size), Image.Resampling.BILINEAR)
    return image


def cut_labels(labels: DotaLabels, tile: Tile, options: Options) -> DotaLabels:
    """The objects that a tile shows, in its pixels, unclipped; those mostly outside are flagged."""
    if not labels.objects:
        return DotaLabels()
    points = np.array([each.points for each in labels.objects]).reshape(-1, 4, 2)
    shares = window_share(points, (tile.x, tile.y, tile.x + tile.size, tile.y + tile.size))
    moved = ((points - (tile.x, tile.y)) * (options.size / tile.size)).reshape(-1, 8)
    return DotaLabels(
        objects=tuple(
            DotaObject(tuple(row), each.name, each.difficult if share >= options.min_share else CUT)
            for each, row, share in zip(labels.objects, moved.tolist(), shares)
            if share > 0
        )
    )


def _map(work: partial, pairs: list, jobs: int):
    if jobs <= 1 or len(pairs) <= 1:
        yield from map(work, pairs)
        return
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(pairs))) as pool:
        yield from pool.imap_unordered(work, pairs)


def _claim(out: Path, options: Options) -> None:
    """Writes the options, or refuses a folder that holds tiles of others."""
    path = out / RECORDS / "options.json"
    mine = json.loads(json.dumps(dataclasses.asdict(options)))
    found = _read_json(path)
    if found is None:
        _write(path, lambda partial_path: partial_path.write_text(json.dumps(mine)))
    elif found != mine:
        key = next(key for key in mine if found.get(key) != mine[key])
        raise DataError(
            f"{out} holds tiles made with {key} {found.get(key)}, not {mine[key]}; choose another folder, or remove it"
        )


def _state(*paths: str | None) -> list:
    """What tells whether a file has changed: its size and time, and for a label file its content."""
    state = []
    for path in paths:
        if path is None:
            state.append(None)
        elif path.endswith(".txt"):
            state.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
        else:
            stat = os.stat(path)
            state.append([Path(path).name, stat.st_size, stat.st_mtime_ns])
    return state


def _write(path: Path, write) -> None:
    """Writes beside the file, then renames: an interruption leaves no half of a file."""
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial_path)
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)


def _read_json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vantage.data.tile", description="Cuts pictures with DOTA labels into tiles."
    )
    parser.add_argument("source", help="a folder with images/ and, for training, labelTxt/")
    parser.add_argument("out", help="the folder to fill in the same way")
    parser.add_argument("--size", type=int, default=Options.size, help="side of a tile in pixels (%(default)s)")
    parser.add_argument("--overlap", type=int, default=Options.overlap, help="pixels two tiles share (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0], help="resize pictures by these (1.0)")
    parser.add_argument("--min-share", type=float, default=Options.min_share, help="of an object (%(default)s)")
    parser.add_argument("--min-filled", type=float, default=Options.min_filled, help="of a tile (%(default)s)")
    parser.add_argument("--labels", default=Options.labels, help="name of the label folder (%(default)s)")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="processes (%(default)s)")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad pictures and lines out and count them")
    given = parser.parse_args(arguments)
    try:
        options = Options(
            given.size, given.overlap, tuple(given.rates), given.min_share, given.min_filled, FILL, given.labels
        )
        counts = tile_folder(given.source, given.out, options, jobs=given.jobs, skip_bad=given.skip_bad)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    for reason in counts.bad:
        print(f"skipped {reason}", file=sys.stderr)
    print(f"{given.out}: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

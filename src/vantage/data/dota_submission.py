"""DOTA's submission: a zip of one text file per class, read and written.

    Task1_<class>.txt:  image score x1 y1 x2 y2 x3 y3 x4 y4

Images are called by the names of whole pictures: the server knows no tiles. A class without any find has no file,
since an empty one is refused there.

    python -m vantage.data.dota_submission TILE_RESULTS OUT.zip      merges what was found on tiles
"""

import argparse
import io
import math
import re
import sys
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from vantage.data.dota_labels import shortest
from vantage.data.errors import DataError
from vantage.data.tiles import Detections, is_tile_name, merge_tiles
from vantage.ops.rotated_boxes import from_corners, to_corners

LINE = "image score x1 y1 x2 y2 x3 y3 x4 y4"
FILE = re.compile(r"Task1_(?P<name>.+)\.txt")


def write_submission(path: str | Path, results: Mapping[str, Detections], class_names: Sequence[str]) -> None:
    """Writes the zip; the same results always give the same bytes.

    results: name of the picture -> boxes (N, 5), scores (N,), labels (N,).
    Raises: DataError, for a tile's name or a number that is not finite.
    """
    lines: dict[int, list[str]] = defaultdict(list)
    for name, (boxes, scores, labels) in sorted(results.items()):
        if is_tile_name(name):
            raise DataError(
                f"{path}: {name!r} is a tile, and a submission counts whole pictures; merge the tiles first"
            )
        if not (boxes.isfinite().all() and scores.isfinite().all()):
            raise DataError(f"{path}: a box or score of {name!r} is not finite")
        corners = to_corners(boxes.double()).flatten(1)
        for label, score, row in zip(labels.tolist(), scores.tolist(), corners.tolist()):
            lines[label].append(f"{name} {score:.6f} {' '.join(map(shortest, row))}\n")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for label in sorted(lines):
            info = zipfile.ZipInfo(f"Task1_{class_names[label]}.txt", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, "".join(lines[label]))


def read_submission(path: str | Path) -> tuple[dict[str, Detections], list[str]]:
    """A zip or a folder of Task1_*.txt -> name of the picture (or tile) -> detections, and the classes, sorted."""
    files = _contents(Path(path))
    class_names = sorted(files)
    rows: dict[str, list[tuple[float, list[float], int]]] = defaultdict(list)
    for label, name in enumerate(class_names):
        source, text = files[name]
        for number, line in enumerate(io.StringIO(text), 1):
            if words := line.split():
                rows[words[0]].append((*_numbers(words, f"{source}, line {number}"), label))
    results = {}
    for name, found in rows.items():
        scores, corners, labels = zip(*found)
        boxes = from_corners(torch.tensor(corners, dtype=torch.float64).view(-1, 4, 2)).float()
        results[name] = (boxes, torch.tensor(scores), torch.tensor(labels))
    return results, class_names


def _numbers(words: Sequence[str], where: str) -> tuple[float, list[float]]:
    try:
        score, *corners = map(float, words[1:])
    except ValueError:
        corners = []
    if len(corners) != 8 or not all(map(math.isfinite, [score, *corners])):
        raise DataError(f"{where}: is not '{LINE}' with finite numbers")
    return score, corners


def _contents(path: Path) -> dict[str, tuple[str, str]]:
    """class -> (file, text)."""
    if path.is_dir():
        listed = {file.name: (str(file), file.read_text()) for file in path.iterdir() if FILE.fullmatch(file.name)}
    elif path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            listed = {name: (f"{path}/{name}", archive.read(name).decode()) for name in archive.namelist()}
    else:
        raise DataError(f"{path} is neither a zip nor a folder of Task1_<class>.txt files")
    found = {match["name"]: listed[name] for name in listed if (match := FILE.fullmatch(name))}
    if not found:
        raise DataError(f"{path} holds no file Task1_<class>.txt")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vantage.data.dota_submission",
        description="Merges what was found on tiles (Task1_*.txt with tiles' names) into a submission.",
    )
    parser.add_argument("results", help="a folder or zip of Task1_<class>.txt files")
    parser.add_argument("out", help="the zip to write")
    parser.add_argument("--size", type=int, default=1024, help="side of the tiles in pixels (1024)")
    parser.add_argument("--iou", type=float, default=0.1, help="IoU above which finds of a class are the same (0.1)")
    options = parser.parse_args(arguments)
    try:
        found, class_names = read_submission(options.results)
        merged = merge_tiles(
            ((name, *values) for name, values in found.items()), tile_size=options.size, iou_threshold=options.iou
        )
        write_submission(options.out, merged, class_names)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    before, after = (sum(len(scores) for _, scores, _ in each.values()) for each in (found, merged))
    print(f"{options.out}: {after:,} of {before:,} finds on {len(merged):,} pictures from {len(found):,} tiles")
    return 0


if __name__ == "__main__":
    sys.exit(main())

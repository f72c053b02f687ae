"""Benchmark sets of super-resolution below one folder, in the layouts that are in use.

root/Set5/HR/baby.png          root/Set5/LR_bicubic/X4/babyx4.png       EDSR's, which most releases share
root/Set5/GTmod12/baby.png     root/Set5/LRbicx4/baby.png               BasicSR's
root/Set5/baby.png                                                      HR alone

LR folders may be missing, then LR pictures are made, and their files may be called as low_resolution_files tells.
"""

from collections.abc import Sequence
from pathlib import Path

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.images import EXTENSIONS
from vantage.data.low_resolution_files import pair_low, refuse_mixed
from vantage.data.super_resolution_dataset import PicturePair

HIGH_FOLDERS = ("HR", "GTmod12")


def benchmark_pairs(
    root: Path, sets: Sequence[str] | None, *, scale: int, lr: str
) -> tuple[list[PicturePair], list[str]]:
    """The pictures of the sets in that order, by default of all, and a sentence for each that is to be left out."""
    if not root.is_dir():
        raise DataNotFoundError(f"there is no folder {root.absolute()} (data.benchmarks={root})")
    if sets is None:
        sets = sorted(folder.name for folder in root.iterdir() if _is_set(folder))
        if not sets:
            raise DataError(
                f"{root} (data.benchmarks) holds no benchmark set; expected in it: Set5/HR/*.png, Set5/GTmod12/*.png "
                "or Set5/*.png, and the like"
            )
    pairs, bad = [], []
    for name in sets:
        found, sentences = _pairs_of(root / name, scale=scale, lr=lr)
        pairs += [PicturePair(pair.name, pair.high, pair.low, name) for pair in found]
        bad += sentences
    return pairs, bad


def _pairs_of(folder: Path, *, scale: int, lr: str) -> tuple[list[PicturePair], list[str]]:
    if not folder.is_dir():
        there = ", ".join(sorted(each.name for each in folder.parent.iterdir() if _is_set(each))) or "none"
        raise DataNotFoundError(f"there is no folder {folder} (data.sets); the sets below data.benchmarks are: {there}")
    high = [folder / name for name in HIGH_FOLDERS if (folder / name).is_dir()]
    if len(high) > 1:
        raise DataError(f"{high[0]} and {high[1]} may both hold the HR pictures; keep one of them")
    low = [folder / "LR_bicubic" / f"X{scale}", folder / "LR_bicubic" / f"x{scale}", folder / f"LRbicx{scale}"]
    hint = f"; expected in {folder}: HR/, GTmod12/ or pictures"
    pairs, bad = pair_low(high[0] if high else folder, low, scale=scale, lr=lr, recursive=bool(high), hint=hint)
    if not high:
        refuse_mixed([pair.name for pair in pairs], folder)
    return pairs, bad


def _is_set(folder: Path) -> bool:
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    if any((folder / name).is_dir() for name in HIGH_FOLDERS):
        return True
    return any(path.suffix.lower() in EXTENSIONS for path in folder.iterdir())

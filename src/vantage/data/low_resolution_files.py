"""Folders of HR pictures and the folders of their LR pictures: which belongs to which.

The LR file of "baby" at x4 may be called, with any extension,

    baby   babyx4   babyX4   baby_x4   baby_X4   baby_LRBI_x4

A picture with two of them is ambiguous and refused, and so are two pictures with one.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.mask_files import list_by_name
from vantage.data.super_resolution_dataset import PicturePair

TEMPLATES = ("{name}", "{name}x{scale}", "{name}X{scale}", "{name}_x{scale}", "{name}_X{scale}", "{name}_LRBI_x{scale}")
SCALES = (2, 3, 4, 8)


def candidates(name: str, scale: int) -> list[str]:
    return [template.format(name=name, scale=scale) for template in TEMPLATES]


def pair_low(
    high: Path, low: Iterable[Path], *, scale: int, lr: str, recursive: bool = True, hint: str = ""
) -> tuple[list[PicturePair], list[str]]:
    """The pictures below `high`, sorted by name, with their LR files, and a sentence for each that is to be left out.

    A name is the path below the folder without its extension. low: folders in which LR files may lie. lr: "files",
    they must be there; "make", none is looked for; "auto", they are used if there is such a folder.
    """
    if not high.is_dir():
        raise DataNotFoundError(f"there is no folder {high.absolute()}; HR pictures are expected in it{hint}")
    files = {name: paths for name, paths in list_by_name(high).items() if recursive or "/" not in name}
    if not files:
        raise DataError(f"{high} holds no picture{hint}")
    bad = [
        f"{paths[0]}: has the same name as {paths[1]}, and pictures are told apart by it"
        for paths in files.values()
        if paths[1:]
    ]
    names = {name: paths[0] for name, paths in sorted(files.items()) if len(paths) == 1}
    folder = None if lr == "make" else low_folder(low, high, lr)
    if folder is None:
        return [PicturePair(name, path) for name, path in names.items()], bad
    pairs, taken, listed = [], {}, list_by_name(folder)
    for name, path in names.items():
        found = [file for wanted in candidates(name, scale) for file in listed.get(wanted, ())]
        if len(found) > 1:
            bad.append(f"{path}: may have {found[0]} or {found[1]} as its LR picture; keep one of them")
        elif not found:
            bad.append(f"{path}: has no LR picture in {folder}, {_expected(name, scale, listed)}")
        elif found[0] in taken:
            bad.append(f"{found[0]}: may be the LR picture of {taken[found[0]]} or of {path}; rename one of the two")
        else:
            taken[found[0]] = path
            pairs.append(PicturePair(name, path, found[0]))
    return pairs, bad


def low_folder(low: Iterable[Path], high: Path, lr: str) -> Path | None:
    """The one of the folders that is there. Raises: DataError if none is and lr is "files", or if several are."""
    there: list[Path] = []
    low = list(low)
    for folder in low:  # X4 and x4 are one folder where case does not count
        if folder.is_dir() and not any(folder.samefile(other) for other in there):
            there.append(folder)
    if len(there) > 1:
        raise DataError(
            f"{there[0]} and {there[1]} may both hold the LR pictures of {high}; keep one, or use data.lr=make"
        )
    if not there and lr == "files":
        where = f"none of the folders {', '.join(map(str, low))} is there" if low else f"{high} has no folder for them"
        raise DataNotFoundError(f"data.lr=files and {where}; use data.lr=make for LR pictures made from the HR ones")
    return there[0] if there else None


def refuse_mixed(names: Sequence[str], folder: Path) -> None:
    """Raises: DataError if a folder of HR pictures has some that are called like the LR pictures of others."""
    known = set(names)
    for name in names:
        for scale in SCALES:
            for other in candidates(name, scale)[1:]:
                if other in known:
                    raise DataError(
                        f"{folder} holds {name} and {other}, which looks like its LR picture; put HR pictures into "
                        f"{folder / 'HR'} and LR ones into {folder / 'LR_bicubic' / f'X{scale}'}"
                    )


def _expected(name: str, scale: int, listed: dict[str, list[str]]) -> str:
    """The end of a sentence about an LR file that is missing."""
    for other in SCALES:
        for wanted in candidates(name, other)[1:] if other != scale else ():
            if wanted in listed:
                return f"only {Path(listed[wanted][0]).name}, which data.scale={other} takes"
    *some, last = candidates(Path(name).name, scale)
    return f"where it may be called {', '.join(some)} or {last}; data.lr=make makes LR pictures from the HR ones"

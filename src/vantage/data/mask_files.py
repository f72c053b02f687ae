"""Folders of pictures and folders of masks: which belongs to which, and what lacks the other."""

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from vantage.data.errors import DataNotFoundError
from vantage.data.images import EXTENSIONS

KNOWN = " ".join(sorted(EXTENSIONS))


def pair_masks(
    images: Path,
    masks: Path,
    *,
    name_of_mask: Callable[[str], str] = str,
    hint: str = "",
    only_masks: bool = True,
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """(name, picture, mask) below two folders, sorted by name, and a sentence for each file that lacks the other.

    A name is the path below the folder without its extension. name_of_mask: from the picture's name to the mask's
    (ISIC_1 -> ISIC_1_segmentation). only_masks: every image below `masks` belongs to a picture; Cityscapes keeps
    coloured copies beside its masks.
    """
    for folder, what in ((images, "pictures"), (masks, "masks")):
        if not folder.is_dir():
            raise DataNotFoundError(f"there is no folder {folder.absolute()}; {what} are expected in it{hint}")
    pictures, labels = list_by_name(images), list_by_name(masks)
    pairs, bad, used = [], [], set()
    for name, found in sorted(pictures.items()):
        wanted = name_of_mask(name)
        used.add(wanted)
        if len(found) > 1:
            bad.append(f"{found[0]}: has the same name as {found[1]}, and masks are found by it")
        elif wanted not in labels:
            bad.append(f"{found[0]}: has no mask {masks / wanted}.* ({KNOWN})")
        elif len(labels[wanted]) > 1:
            bad.append(f"{labels[wanted][0]}: has the same name as {labels[wanted][1]}, and {found[0]} has one mask")
        else:
            pairs.append((name, found[0], labels[wanted][0]))
    spare = sorted(labels.keys() - used) if only_masks else []
    bad += [f"{labels[name][0]}: is a mask without a picture in {images}" for name in spare]
    return pairs, bad


def list_by_name(folder: Path) -> dict[str, list[str]]:
    """Path below the folder, without its extension -> the image files of that name; hidden files are none."""
    found = defaultdict(list)
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            path = Path(parent) / file
            if not file.startswith(".") and path.suffix.lower() in EXTENSIONS:
                found[path.relative_to(folder).with_suffix("").as_posix()].append(str(path))
    return found


def first_folder(root: Path, *names: str) -> Path:
    """The first of the folders that exists, else the first of them, which an error will then name."""
    return next((root / name for name in names if (root / name).is_dir()), root / names[0])

"""Folders of pictures and DOTA label files: which belongs to which, and what lacks the other."""

import logging
import os
from collections import defaultdict
from pathlib import Path

from PIL import Image
from torch import Tensor

from vantage.data.errors import DataNotFoundError
from vantage.data.images import EXTENSIONS, read_image

log = logging.getLogger(__name__)

IMAGES = "images"
KNOWN = " ".join(sorted(EXTENSIONS))


def pair_files(folder: Path, labels: str = "labelTxt") -> tuple[list[tuple[str, str]], list[str]]:
    """(picture, label file) by name, sorted, and a sentence for each file that lacks the other."""
    for part, what in ((IMAGES, "pictures"), (labels, "label files")):
        if not (folder / part).is_dir():
            raise DataNotFoundError(f"there is no folder {(folder / part).absolute()}; {what} are expected in it")
    images = list_images(folder / IMAGES)
    texts = {Path(entry.name).stem: entry.path for entry in os.scandir(folder / labels) if entry.name.endswith(".txt")}
    pairs, bad = [], []
    for stem in sorted(images.keys() | texts.keys()):
        if stem not in texts:
            expected = folder / labels / f"{stem}.txt"
            bad.append(f"{images[stem][0]}: has no label file {expected}; write an empty one if nothing is on it")
        elif stem not in images:
            bad.append(f"{texts[stem]}: has no picture {folder / IMAGES / stem}.* ({KNOWN})")
        elif len(images[stem]) > 1:
            bad.append(
                f"{images[stem][0]}: has the same name as {images[stem][1]}, and {texts[stem]} labels one picture"
            )
        else:
            pairs.append((images[stem][0], texts[stem]))
    return pairs, bad


def list_images(folder: Path) -> dict[str, list[str]]:
    """Name without extension -> the image files of that name; other files are counted in the log."""
    images, others = defaultdict(list), []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        is_image = entry.is_file() and Path(entry.name).suffix.lower() in EXTENSIONS and entry.name[0] != "."
        if is_image:
            images[Path(entry.name).stem].append(entry.path)
        else:
            others.append(entry.path)
    if others:
        log.warning(
            "%s: ignored %d files that are not images (%s), the first is %s", folder, len(others), KNOWN, others[0]
        )
    return images


def read_large_image(path: str | Path, in_chans: int) -> Tensor:
    """A file -> uint8 (in_chans, H, W), of whatever size: some pictures of DOTA-v2.0 have 800 megapixels."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow takes them for an attack; here and not once, for a worker is a new process
    return read_image(path, in_chans)

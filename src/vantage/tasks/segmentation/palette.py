"""Colours of classes, and masks as indexed PNG files: pixels hold class indices, a palette their colours.

The colours are the PASCAL VOC colour map (Everingham et al., "The Pascal Visual Object Classes Challenge: A
Retrospective", 2015; VOCdevkit), unless a data set has its own. Its rule interleaves the bits of the index:
    bit 3j + c of the index is bit 7 - j of channel c        (c = 0, 1, 2: red, green, blue)
so every index of 8 bits has another colour, neighbouring indices have colours far apart, and 0, the usual background,
is black.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vantage.data.info import DataInfo
from vantage.data.masks import IGNORE, MOST_CLASSES

Palette = Sequence[Sequence[int]]  # RGB 0..255 per class

IGNORE_COLOUR = (224, 224, 192)  # the rule's colour of 255: what VOC's own files show around objects


def palette(num_classes: int) -> list[list[int]]:
    """RGB 0..255 of the classes 0..num_classes-1.

    Raises: ValueError for more than 255 classes.
    """
    if num_classes > MOST_CLASSES:
        raise ValueError(f"num_classes is {num_classes}, but a uint8 mask holds {MOST_CLASSES} classes beside {IGNORE}")
    index = np.arange(num_classes)
    colours = np.zeros((num_classes, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= ((index >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours.tolist()


def palette_of(info: DataInfo) -> list[list[int]]:
    """The data's own colours where it has agreed on some."""
    return palette(info.num_classes) if info.palette is None else [list(colour) for colour in info.palette]


def table(palette: Palette) -> np.ndarray:
    """uint8 (256, 3): the colour of every value of a mask; black where a value is neither a class nor ignored."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    colours[IGNORE] = IGNORE_COLOUR
    return colours


def colourise(mask: np.ndarray, palette: Palette) -> np.ndarray:
    """uint8 (H, W) -> uint8 (H, W, 3)."""
    return table(palette)[mask]


def write_indexed_png(path: Path | str, mask: np.ndarray, palette: Palette) -> Path:
    """A PNG of Pillow's mode P with the mask's values as indices and a palette of 256 colours."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(mask, np.uint8))
    image.putpalette(table(palette).tobytes())
    image.save(path)
    return path

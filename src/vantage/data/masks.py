"""Annotation files to masks: uint8 (H, W), the class of every pixel, 255 where it is to be ignored.

How a file tells the class is its encoding:
    Indices     the pixel's value, grey or of a palette, looked up in a table
    Colours     the pixel's colour
    Threshold   bright or dark: two classes, for drawings saved with grey rims
A value that means no class is an error, never a guess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vantage.data.errors import DataError

IGNORE = 255
MOST_CLASSES = 255
UNKNOWN = -1  # in tables: this value means no class
IF_JPEG = "JPEG blurs labels: save masks as PNG, or give data.threshold=127 if there are two classes"


def open_mask(path: str | Path) -> Image.Image:
    """The picture, loaded. Raises: DataError naming the file, if it is missing, corrupt or of an unknown kind."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow takes large ones for an attack
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error ... on broken input
        reason = "not a readable image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise DataError(f"{path}: cannot be decoded ({reason or type(error).__name__})") from None


@dataclass(frozen=True)
class Indices:
    """The class of each value of a file; values that are missing are errors. A palette's colours are not looked at."""

    classes: Mapping[int, int]  # value -> class or IGNORE

    @classmethod
    def plain(cls, num_classes: int) -> "Indices":
        """Values are classes, 255 is ignored."""
        return cls({value: value for value in range(num_classes)} | {IGNORE: IGNORE})

    @classmethod
    def without_zero(cls, num_classes: int) -> "Indices":
        """0 and 255 are ignored, 1..K are the classes 0..K-1."""
        return cls({0: IGNORE, IGNORE: IGNORE} | {value + 1: value for value in range(num_classes)})

    def read(self, path: str | Path) -> Tensor:
        image = open_mask(path)
        if len(image.getbands()) > 1:
            fix = "convert its colours to indices, or use data=mask_folder with colours in classes.txt"
            raise DataError(
                f"{path}: is a picture of mode {image.mode}, but a mask holds one class index per pixel (modes L, P); "
                + (IF_JPEG if is_jpeg(path) else fix)
            )
        if image.mode == "F":
            raise DataError(
                f"{path}: holds fractions (mode F), but a mask holds one class index per pixel; save whole numbers"
            )
        values = np.asarray(image).astype(np.int64)
        table = np.full(int(max(values.max(initial=0), *self.classes)) + 1, UNKNOWN, dtype=np.int16)
        table[list(self.classes)] = list(self.classes.values())
        classes = np.where(values < 0, UNKNOWN, table[values.clip(0)])
        if (classes == UNKNOWN).any():
            self._refuse(path, values, classes == UNKNOWN)
        return torch.from_numpy(classes.astype(np.uint8))

    def _refuse(self, path: str | Path, values: np.ndarray, wrong: np.ndarray) -> None:
        row, column = np.argwhere(wrong)[0].tolist()
        known = sorted(value for value, label in self.classes.items() if label != IGNORE)
        ignored = sorted(value for value, label in self.classes.items() if label == IGNORE)
        raise DataError(
            f"{path}: holds the label {values[row, column]}, first at pixel (x={column}, y={row}), which is none of "
            f"{spans(known)}" + (f" and not ignored ({spans(ignored)})" if ignored else "") + advice(path, values)
        )


@dataclass(frozen=True)
class Colours:
    """The class of each colour of a file; of a palette picture its colours count, not its indices.

    tolerance: how far each of red, green and blue may be off, for data sets released so; less than half of what any
    two classes differ by.
    """

    classes: Mapping[tuple[int, int, int], int]  # (r, g, b) -> class or IGNORE
    tolerance: int = 0

    def read(self, path: str | Path) -> Tensor:
        image = open_mask(path)
        pixels = np.asarray(image.convert("RGB"))
        codes, colours = packed(pixels), np.array(sorted(self.classes), dtype=np.int16)  # (K, 3)
        known = packed(colours)
        place = np.searchsorted(known, codes).clip(max=len(known) - 1)
        wrong = known[place] != codes
        if wrong.any() and self.tolerance:
            others = pixels[wrong].astype(np.int16)  # (N, 3)
            distance = np.stack([abs(others - colour).max(-1) for colour in colours])
            place[wrong] = distance.argmin(0)
            wrong[wrong] = distance.min(0) > self.tolerance
        if wrong.any():
            row, column = np.argwhere(wrong)[0].tolist()
            colour = tuple(pixels[row, column].tolist())
            found = f"{path}: holds the colour {colour}, first at pixel (x={column}, y={row}), which is no class's"
            if image.mode == "P":
                indices = np.asarray(image)
                found += (
                    f"; it is a palette picture with the indices {spans(np.unique(indices).tolist())}: if these are "
                    "the classes, leave the colours out of classes.txt"
                )
            elif image.mode in ("L", "1", "I;16", "I"):
                found += "; it is a grey picture: if its values are the classes, leave the colours out of classes.txt"
            elif is_jpeg(path):
                found += "; JPEG blurs colours: save masks as PNG"
            else:
                found += "; correct the file, or the list of classes"
            raise DataError(found)
        labels = np.array([self.classes[colour] for colour in sorted(self.classes)], dtype=np.uint8)
        return torch.from_numpy(labels[place])


@dataclass(frozen=True)
class Threshold:
    """Class 1 where the grey value exceeds a threshold, else class 0: masks saved as JPEG have grey rims."""

    above: int  # 0..254

    def read(self, path: str | Path) -> Tensor:
        image = open_mask(path)
        if image.mode.startswith("I;16"):
            values = np.asarray(image).astype(np.int64) >> 8
        else:
            values = np.asarray(image.convert("L"))  # a palette's colours count here, not its indices
        return torch.from_numpy((values > self.above).astype(np.uint8))


class Encoding(Protocol):
    """Any of these, or what a format makes of them."""

    def read(self, path: str | Path) -> Tensor:
        """A mask file -> uint8 (H, W). Raises: DataError naming the file and what in it means no class."""


@dataclass(frozen=True)
class ReadMask:
    """Reads mask files of one encoding; an object and not a closure, so that workers can be sent it."""

    encoding: Encoding

    def __call__(self, path: str | Path) -> Tensor:
        return self.encoding.read(path)


def packed(colours: np.ndarray) -> np.ndarray:
    """(..., 3), 0..255 -> (...): one number per colour, in the colours' order."""
    parts = colours.astype(np.int32)
    return (parts[..., 0] << 16) | (parts[..., 1] << 8) | parts[..., 2]


def is_jpeg(path: str | Path) -> bool:
    return str(path).lower().endswith((".jpg", ".jpeg"))


def advice(path: str | Path, values: np.ndarray) -> str:
    """What a mask with unexpected values probably is."""
    if is_jpeg(path):
        return f"; {IF_JPEG}"
    if set(np.unique(values).tolist()) <= {0, 255}:
        return "; it is black and white: give data.threshold=127 if white is class 1"
    return "; correct the file, or the list of classes"


def spans(values: Sequence[int]) -> str:
    """0..9, 12 and the like for sorted numbers."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and parts[-1][1] == value - 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ", ".join(f"{low}..{high}" if low != high else str(low) for low, high in parts)

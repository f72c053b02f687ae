"""Where tiles lie on a picture, what they are called, and how boxes found on them come back to it.

A tile is named name__size__x___y: it shows the square of `size` pixels of the picture `name` whose corner is (x, y),
resized to the side of all tiles. DOTA's development kit writes name__rate__x___y instead, with x and y in a picture
resized by `rate`; both are read, for no window is as small as a rate is large.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.data.errors import DataError
from vantage.ops.rotated_boxes import rotated_nms

MIN_WINDOW = 16  # a smaller number in a name is a rate
NAME = re.compile(r"(?P<name>.+)__(?P<size>[0-9.]+)__(?P<x>-?[0-9]+)___(?P<y>-?[0-9]+)")

Detections = tuple[Tensor, Tensor, Tensor]  # boxes (N, 5), scores (N,), labels (N,)


@dataclass(frozen=True)
class Tile:
    """A square window of a picture, in the picture's pixels, or, named with a rate, in those of the resized one."""

    name: str
    size: int
    x: int
    y: int
    rate: float = 1.0

    def __str__(self) -> str:
        return f"{self.name}__{self.size}__{self.x}___{self.y}"

    @classmethod
    def parse(cls, text: str, tile_size: int) -> "Tile":
        match = NAME.fullmatch(text)
        if match is None:
            raise DataError(f"{text!r} is no name of a tile; tiles are called name__size__x___y")
        size, x, y = float(match["size"]), int(match["x"]), int(match["y"])
        if size < MIN_WINDOW:
            return cls(match["name"], tile_size, x, y, size)
        return cls(match["name"], int(size), x, y)

    def to_picture(self, boxes: Tensor, tile_size: int) -> Tensor:
        """Boxes (N, 5) in the pixels of the tile, whose side is tile_size -> in the picture's."""
        scale = self.size / tile_size
        offset = boxes.new_tensor([self.x, self.y])
        return torch.cat(
            [(boxes[:, :2] * scale + offset) / self.rate, boxes[:, 2:4] * scale / self.rate, boxes[:, 4:]], 1
        )


def windows(height: int, width: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Corners (x, y) of square windows that cover a picture, the last of each row and column shifted inward."""
    if not 0 <= overlap < size:
        raise DataError(f"overlap={overlap} does not fit tiles of {size}; it must be in 0..{size - 1}")
    return [(x, y) for y in starts(height, size, size - overlap) for x in starts(width, size, size - overlap)]


def starts(length: int, size: int, step: int) -> list[int]:
    if length <= size:
        return [0]
    count = -(-(length - size) // step) + 1
    return [min(step * i, length - size) for i in range(count)]


def merge_tiles(
    results: Iterable[tuple[str, Tensor, Tensor, Tensor]], *, tile_size: int, iou_threshold: float = 0.1
) -> dict[str, Detections]:
    """What was found on tiles -> what is on each picture: moved, scaled, and repeated finds of a class removed.

    results: (name of the tile, boxes (N, 5), scores (N,), labels (N,)), in any order.
    Of the boxes of a class that overlap with an IoU above iou_threshold the one with the highest score stays.
    """
    parts: dict[str, list[Detections]] = defaultdict(list)
    for text, boxes, scores, labels in results:
        tile = Tile.parse(text, tile_size)
        parts[tile.name].append((tile.to_picture(boxes, tile_size), scores, labels))
    merged = {}
    for name, found in parts.items():
        boxes, scores, labels = (torch.cat(tensors) for tensors in zip(*found))
        kept = rotated_nms(boxes, scores, iou_threshold, labels=labels)
        merged[name] = (boxes[kept], scores[kept], labels[kept])
    return merged


def is_tile_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def picture_of(name: str) -> str:
    """The name of the picture that a tile shows; of what is no tile, its own."""
    match = NAME.fullmatch(name)
    return name if match is None else match["name"]

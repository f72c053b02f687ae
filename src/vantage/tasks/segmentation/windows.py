"""Where the tiles of a picture lie, one axis at a time; the columns of a panorama form a circle."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.data.tiles import starts


@dataclass(frozen=True)
class Axis:
    """Tiles of `size` pixels along an axis of `length`, from `starts` on; on a circle past its end to its beginning."""

    length: int
    size: int
    starts: list[int]

    def spans(self, start: int) -> list[tuple[slice, slice]]:
        """The runs of a tile that lie together, each in the picture and in the tile: one, or two across the seam."""
        before = min(self.size, self.length - start)  # the seam
        spans = [(slice(start, start + before), slice(0, before))]
        if before < self.size:
            spans.append((slice(0, self.size - before), slice(before, self.size)))
        return spans

    def counts(self) -> Tensor:
        """float32 (length,): the number of tiles that have a pixel."""
        counts = torch.zeros(self.length)
        for start in self.starts:
            for picture, _ in self.spans(start):
                counts[picture] += 1
        return counts


def line(length: int, tile: int, overlap: float) -> Axis:
    """Tiles that share at least `overlap` of themselves with the next, the last one shifted inward.

    A tile longer than the axis is cut to it: no padding is seen that a model was not trained on.
    """
    return Axis(length, min(tile, length), starts(length, tile, step(tile, overlap)))


def circle(length: int, tile: int, overlap: float) -> Axis:
    """The same on a circle, evenly spaced: n tiles from round(i length / n) on, n the least even number that will do.

    As n is even, rolling a picture of even length by half of it gives the same tiles, so that the result rolls with it
    for any model. Also where a tile is as long as the circle: the second one shows the seam in its middle.
    """
    size = min(tile, length)
    pairs = 1 if tile >= length else math.ceil(length / (2 * step(tile, overlap)))
    # halves are rounded up: to the even neighbour, as `round` does, would not move by length / 2 with the picture
    return Axis(length, size, [(i * length + pairs) // (2 * pairs) % length for i in range(2 * pairs)])


def step(tile: int, overlap: float) -> int:
    return max(1, tile - math.ceil(overlap * tile))

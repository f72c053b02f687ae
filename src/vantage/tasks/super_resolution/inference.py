"""Pictures of any size through a network: in one piece or in tiles, eight ways at once if wanted.

Tiles overlap, and each keeps what lies nearer to its middle than to its neighbours': nothing is averaged, so that all
that is held beside the picture and the result is one tile. Where the network's reach is at most half of the overlap,
the result is that of the whole picture; where it is not, it differs a little and no seam is seen.
    ensemble(x) = 1/8 sum_g g^-1(network(g(x))),    g the flips and quarter turns  (Lim et al., 2017, arXiv:1707.02921)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vantage.data.tiles import starts
from vantage.ops.resize.weights import mirrored

Network = Callable[[Tensor], Tensor]  # (B, C, h, w) -> (B, C, scale h, scale w)


@dataclass(frozen=True)
class Upscale:
    """Calls a network on pictures that it may be too small for.

    tile      side of a tile, in pixels of the small picture; None: pictures are taken whole
    overlap   pixels that neighbouring tiles share
    ensemble  average over the eight flips and quarter turns
    """

    scale: int
    tile: int | None = None
    overlap: int = 32
    ensemble: bool = False

    def __post_init__(self) -> None:
        if self.overlap < 0:
            raise ValueError(f"task.tile_overlap is {self.overlap}; it must be 0 or more")
        if self.tile is not None and self.tile <= self.overlap:
            raise ValueError(
                f"a tile of {self.tile} pixels does not reach beyond an overlap of {self.overlap}; use a larger tile "
                "or a smaller task.tile_overlap"
            )

    def __call__(self, network: Network, picture: Tensor) -> Tensor:
        """(C, h, w) -> (C, scale h, scale w)"""
        height, width = picture.shape[-2:]
        if self.tile is None or max(height, width) <= self.tile:
            return self.views(network, picture)
        result = picture.new_empty(picture.shape[0], height * self.scale, width * self.scale)
        for place, made in self.tiles(network, picture):
            result[(slice(None), *place)] = made
        return result

    def tiles(self, network: Network, picture: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
        """The result piece by piece: rows and columns of it, and what belongs there."""
        side = self.tile or max(picture.shape[-2:])
        for top, rows in kept(picture.shape[-2], side, self.overlap):
            for left, columns in kept(picture.shape[-1], side, self.overlap):
                piece = picture[:, top : top + side, left : left + side]
                made = self.views(network, piece)
                inside = self.scaled(rows, top), self.scaled(columns, left)
                yield (self.scaled(rows, 0), self.scaled(columns, 0)), made[(slice(None), *inside)]

    def scaled(self, pixels: slice, start: int) -> slice:
        return slice((pixels.start - start) * self.scale, (pixels.stop - start) * self.scale)

    def views(self, network: Network, picture: Tensor) -> Tensor:
        if not self.ensemble:
            return network(picture[None])[0]
        total = None
        for turns in range(4):
            for flipped in (False, True):
                view = picture.rot90(turns, (-2, -1))
                view = view.flip(-1) if flipped else view
                made = network(view[None].contiguous())[0]
                made = (made.flip(-1) if flipped else made).rot90(-turns, (-2, -1))
                total = made.clone() if total is None else total.add_(made)
        return total.div_(8)


def kept(length: int, tile: int, overlap: int) -> list[tuple[int, slice]]:
    """Where the tiles of an axis start, and which of its pixels each of them gives: halves of what neighbours share."""
    begins = starts(length, tile, tile - overlap)
    cuts = [0, *((before + tile + after) // 2 for before, after in pairwise(begins)), length]
    return [(begin, slice(low, high)) for begin, (low, high) in zip(begins, pairwise(cuts), strict=True)]


def small_enough(network: Network, least: int) -> Network:
    """A network that wants sides of at least `least` pixels: smaller pictures are mirrored outward, and cut again."""

    def padded(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) >= least:
            return network(x)
        for dim, length in ((-2, height), (-1, width)):
            x = x.index_select(dim, mirrored(torch.arange(max(length, least), device=x.device), length))
        made = network(x)
        scale = made.shape[-1] // x.shape[-1]
        return made[..., : height * scale, : width * scale]

    return padded

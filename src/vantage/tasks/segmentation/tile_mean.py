"""Scores of a picture that give their rows: of the picture whole, or the mean of overlapping tiles'."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.tasks.segmentation.resize import resize_rows
from vantage.tasks.segmentation.windows import Axis

ROWS = 64  # of a tile that are resized and added at once: a few megabytes


@dataclass(frozen=True)
class Whole:
    """Scores (K, h, w), at any stride."""

    scores: Tensor

    @property
    def num_classes(self) -> int:
        return self.scores.shape[0]

    @property
    def height(self) -> int:
        return self.scores.shape[1]

    @property
    def device(self) -> torch.device:
        return self.scores.device

    def rows(self, start: int, stop: int) -> Tensor:
        """(1, K, stop - start, w)"""
        return self.scores[None, :, start:stop]


class TileMean:
    """mean[k, y, x] = 1 / n(y, x) sum_tiles scores_tile[k, y, x],    n(y, x) = rows(y) columns(x)

    Scores coarser than the picture are kept as they come; the rows that are asked for are resized to their tiles and
    summed. Where all tiles together have more scores than the picture has pixels, they are summed at once into one
    float32 array (K, H, W), so that this is the most that is held. The first way is the faster one: what it works on
    stays in a processor's cache, whereas an array of that size comes from the system anew for every picture.
    """

    def __init__(self, rows: Axis, columns: Axis, device: torch.device):
        self.rows_of_tiles, self.columns_of_tiles = rows, columns
        self.device = device
        self.row_shares, self.column_shares = (1 / axis.counts().to(device) for axis in (rows, columns))  # of the mean
        self.tiles: list[tuple[Tensor, int, int]] = []  # scores (K, h / stride, w / stride), top, left
        self.sum: Tensor | None = None  # (K, H, W)
        self.num_classes = 0

    @property
    def height(self) -> int:
        return self.rows_of_tiles.length

    def add(self, scores: Tensor, top: int, left: int) -> None:
        """The scores (K, h / stride, w / stride), float32 and contiguous, of the tile at row `top`, column `left`."""
        rows, columns = self.rows_of_tiles, self.columns_of_tiles
        self.num_classes = len(scores)
        tile = scores, top, left
        if len(rows.starts) * len(columns.starts) * scores[0].numel() <= rows.length * columns.length:
            self.tiles.append(tile)
            return
        if self.sum is None:
            self.sum = scores.new_zeros(len(scores), rows.length, columns.length)
        for start in range(top, top + rows.size, ROWS):
            stop = min(start + ROWS, top + rows.size)
            self._add(tile, self.sum[:, start:stop], start, stop)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows start..stop of the mean, (1, K, stop - start, W)."""
        if self.sum is not None:
            return self.sum[None, :, start:stop]
        sums = self.tiles[0][0].new_zeros(self.num_classes, stop - start, self.columns_of_tiles.length)
        for tile in self.tiles:
            self._add(tile, sums, start, stop)
        return sums[None]

    def _add(self, tile: tuple[Tensor, int, int], sums: Tensor, start: int, stop: int) -> None:
        """Adds what the tile has of rows start..stop, times its share, to their sums (K, stop - start, W)."""
        scores, top, left = tile
        height, width = self.rows_of_tiles.size, self.columns_of_tiles.size
        first, last = max(start, top), min(stop, top + height)
        if first >= last:
            return
        size = (height, width)
        band = resize_rows(Whole(scores).rows, scores.shape[1], size, first - top, last - top)[0]
        for picture, run in self.columns_of_tiles.spans(left):
            shares = self.row_shares[first:last, None] * self.column_shares[picture]
            sums[:, first - start : last - start, picture].addcmul_(band[..., run], shares)

"""Label maps of pictures of any size: whole or in sliding tiles, at several scales and mirrored.

Sliding averages the logits of overlapping tiles, views (scales, mirrored) average probabilities on the output's grid:

    slide(x)[k, y, x] = 1 / n(y, x) sum_tiles logits_tile[k, y, x]
    views(x) = 1 / V sum_v back_v(softmax(slide(view_v(x)))),          label = argmax_k

Memory beyond the picture and the labels: the scores of one forward pass, at most one float32 map (K, H, W) of the
picture when sliding, one (K, H0, W0) of the result with more than one view, and a fixed number of values for all that
is done with them, for it is done in bands of rows: no second map of all classes is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from vantage.tasks.segmentation.resize import resize, resize_rows
from vantage.tasks.segmentation.tile_mean import TileMean, Whole
from vantage.tasks.segmentation.windows import Axis, circle, line

Predict = Callable[[Tensor], Tensor]  # (B, C, h, w) -> scores (B, K, h / stride, w / stride), any stride

MIN_SIDE = 32  # pixels; backbones take no less


@dataclass(frozen=True)
class WholePictures:
    """Calls `predict` on what it can take and decides the class of every pixel.

    mode       whole: one forward pass per view; slide: one per batch of tiles
    tile       (height, width) of a tile; longer than the picture on an axis it is cut to it, nothing is padded
    overlap    share of a tile that its neighbour has too, at least
    scales     the picture is resized by each of them
    flip       the mirrored picture is a view too
    wraps      the columns are a circle: tiles cross the seam and resizing sees the other edge. The tiles lie so that
               rolling a picture of even width by half of it rolls the result, for any model; a picture in one piece
               needs a model that wraps (`wrap.wrap`) for that
    max_batch  tiles per forward pass, at most
    scores     what predict gives: logits, or probabilities: scores >= 0 that several views average as they are
    """

    mode: Literal["whole", "slide"]
    tile: tuple[int, int] | None = None
    overlap: float = 1 / 3
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    wraps: bool = False
    max_batch: int = 4
    scores: Literal["logits", "probabilities"] = "logits"

    def __post_init__(self) -> None:
        if self.mode == "slide" and self.tile is None:
            raise ValueError("task.inference is slide and task.tile is null; set task.tile or use task.inference=whole")
        if self.tile is not None and min(self.tile) < 1:
            raise ValueError(f"task.tile is {self.tile}; it is the height and width of a tile, in pixels")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"task.tile_overlap is {self.overlap}; it is a share of the tile, in [0, 1)")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"task.test_scales is {self.scales}; use positive numbers, [1.0] for the picture as it is")
        if self.max_batch < 1:
            raise ValueError(f"max_batch is {self.max_batch}; use at least one tile per forward pass")

    def __call__(self, predict: Predict, image: Tensor, size: Sequence[int]) -> Tensor:
        """image (C, H, W), normalised, and the (H0, W0) to give -> labels uint8 (H0, W0), on the image's device."""
        return self.decide(predict, image, size)

    def with_confidence(self, predict: Predict, image: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The labels and their probability, float32 (H0, W0): where scores are no logits, their share of the sum."""
        confidence = torch.empty(tuple(size), device=image.device)
        return self.decide(predict, image, size, confidence), confidence

    @torch.no_grad()
    def decide(self, predict: Predict, image: Tensor, size: Sequence[int], confidence: Tensor | None = None) -> Tensor:
        scores, are_logits = self.views(predict, image, tuple(size))
        labels = torch.empty(tuple(size), dtype=torch.uint8, device=image.device)
        for start, stop, band in self.bands(scores, size):
            best = band.amax(0)
            labels[start:stop] = first_equal(band, best)
            if confidence is None:
                continue
            if are_logits:
                confidence[start:stop] = (band - best).exp_().sum(0).reciprocal_()
            else:
                confidence[start:stop] = best / band.sum(0).clamp_(min=torch.finfo(band.dtype).tiny)
        return labels

    def bands(self, scores: Whole | TileMean, size: Sequence[int]) -> Iterator[tuple[int, int, Tensor]]:
        """The scores resized to (H0, W0), in bands: start, stop and (K, stop - start, W0)."""
        height, width = size
        values = 1 << 21 if scores.device.type == "cpu" else 1 << 24  # some that a cache holds; a launch's worth
        rows = max(1, values // (scores.num_classes * width))
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            yield start, stop, resize_rows(scores.rows, scores.height, size, start, stop, wraps=self.wraps)[0]

    def views(self, predict: Predict, image: Tensor, size: tuple[int, int]) -> tuple[Whole | TileMean, bool]:
        """The scores of all views together, and whether they are logits; those of a single view on its own grid."""
        are_logits = self.scores == "logits"
        views = list(product(self.scales, (False, True) if self.flip else (False,)))
        if len(views) == 1:
            return self.view(predict, image, *views[0]), are_logits
        mean = None
        for scale, mirrored in views:
            scores = self.view(predict, image, scale, mirrored)
            if mean is None:
                mean = torch.zeros(scores.num_classes, *size, device=image.device)
            for start, stop, band in self.bands(scores, size):
                band = band.softmax(0) if are_logits else band
                mean[:, start:stop].add_(band.flip(-1) if mirrored else band, alpha=1 / len(views))
            del scores, band  # before the next view's are made
        return Whole(mean), False

    def view(self, predict: Predict, image: Tensor, scale: float, mirrored: bool) -> Whole | TileMean:
        """The scores of a view, on its own grid and mirrored if it is."""
        size = [self.scaled(side, scale) for side in image.shape[-2:]]
        image = resize(image[None], size, wraps=self.wraps, antialias=True)[0]
        image = image.flip(-1) if mirrored else image
        if self.mode == "slide":
            return self.slide(predict, image)
        return Whole(predict(image[None])[0].float().contiguous())

    def scaled(self, side: int, scale: float) -> int:
        """Even if the side is: half of a panorama stays a whole number of columns."""
        unit = 1 if side % 2 else 2
        return max(round(side * scale / unit) * unit, min(side, MIN_SIDE))

    def slide(self, predict: Predict, image: Tensor) -> TileMean:
        rows = line(image.shape[-2], self.tile[0], self.overlap)
        columns = (circle if self.wraps else line)(image.shape[-1], self.tile[1], self.overlap)
        mean = TileMean(rows, columns, image.device)
        places = list(product(rows.starts, columns.starts))
        batches = -(-len(places) // self.max_batch)
        for batch in range(batches):  # as equal as they can be: a compiled model meets two sizes at most
            some = places[batch * len(places) // batches : (batch + 1) * len(places) // batches]
            tiles = [cut(image, rows, columns, *place) for place in some]
            scores = predict(torch.stack(tiles) if len(tiles) > 1 else tiles[0][None])
            # a copy, for a compiled model may write its next scores into the same memory
            scores = scores.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
            for one, place in zip(scores, some):
                mean.add(one, *place)
        return mean


def cut(image: Tensor, rows: Axis, columns: Axis, top: int, left: int) -> Tensor:
    """The tile (C, h, w) at row `top` and column `left`."""
    image = image[:, top : top + rows.size]
    runs = [image[..., picture] for picture, _ in columns.spans(left)]
    return runs[0] if len(runs) == 1 else torch.cat(runs, -1)


def first_equal(band: Tensor, best: Tensor) -> Tensor:
    """argmax: the first class of the band (K, rows, columns) that has the best score; on a CPU a tenth of its time."""
    last = len(band) - 1
    ranks = torch.arange(last, -1, -1, dtype=band.dtype, device=band.device)[:, None, None]
    equal = torch.eq(band, best, out=torch.empty_like(band))  # 0 and 1 as floats: bools are several times as slow
    return last - equal.mul_(ranks).amax(0)

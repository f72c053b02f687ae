"""Detections on whole pictures of any size: sliding tiles, mirrored and turned views, and their merging by NMS."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.data.tiles import starts
from vantage.ops.rotated_boxes import canonical, rotated_nms
from vantage.tasks.rotated_detection.postprocess import Detections

Detect = Callable[[Tensor], list[Detections]]  # (B, C, H, W) -> one per picture

VIEWS = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, True), (2, False)),  # itself, mirrored, upside down, both
    "rotations": tuple((turns, False) for turns in range(4)),
    "flips_rotations": tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4)),
}


@dataclass(frozen=True)
class WholeImages:
    """Calls `detect` on what it can take and merges; a picture's result does not depend on the others in its batch.

    tile       (H, W) of the largest piece, or None for whole pictures; larger pictures are cut into overlapping tiles,
               the last one of a row or column shifted inward
    overlap    share of the tile that neighbours have in common; objects larger than that may be cut
    views      none, flips, rotations (by quarter turns) or flips_rotations
    """

    tile: tuple[int, int] | None
    overlap: float
    views: str
    nms_threshold: float
    max_detections: int
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.views not in VIEWS:
            raise ValueError(f"task.test_views is {self.views!r}; use one of {', '.join(VIEWS)}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"task.tile_overlap is {self.overlap}; it is a share of the tile, in [0, 1)")

    @torch.no_grad()
    def __call__(self, detect: Detect, images: Sequence[Tensor]) -> list[Detections]:
        """images (C, H, W) of any sizes -> one result per image, in its pixels."""
        pieces: dict[tuple[int, ...], list[Piece]] = {}  # by shape, for only equal ones make a batch
        for number, image in enumerate(images):
            for left, top, width, height in windows(image.shape[-2:], self.tile, self.overlap):
                cut = image[:, top : top + height, left : left + width]
                for turns, mirrored in VIEWS[self.views]:
                    piece = Piece(number, (left, top), (height, width), turns, mirrored, view(cut, turns, mirrored))
                    pieces.setdefault(tuple(piece.image.shape), []).append(piece)
        found: list[list[Detections]] = [[] for _ in images]
        for alike in pieces.values():
            for start in range(0, len(alike), self.batch_size):
                some = alike[start : start + self.batch_size]
                for piece, result in zip(some, detect(torch.stack([piece.image for piece in some]))):
                    found[piece.number].append(piece.back(result))
        return [self.merge(results) for results in found]

    def merge(self, results: Sequence[Detections]) -> Detections:
        if len(results) == 1:
            return results[0]
        boxes, scores, labels = (
            torch.cat([getattr(result, name) for result in results]) for name in ("boxes", "scores", "labels")
        )
        keep = rotated_nms(boxes, scores, self.nms_threshold, labels=labels)[: self.max_detections]
        return Detections(boxes[keep], scores[keep], labels[keep])


@dataclass(frozen=True)
class Piece:
    """A view of a tile: quarter turns (as torch.rot90: counter-clockwise) after mirroring left and right."""

    number: int  # of the picture
    corner: tuple[int, int]  # left, top
    size: tuple[int, int]  # height, width before turning
    turns: int
    mirrored: bool
    image: Tensor

    def back(self, detections: Detections) -> Detections:
        """The detections in pixels of the picture."""
        boxes = view_back(detections.boxes, self.size, self.turns, self.mirrored)
        if self.corner != (0, 0):
            boxes = torch.cat([boxes[:, :2] + boxes.new_tensor(self.corner), boxes[:, 2:]], 1)
        return Detections(boxes, detections.scores, detections.labels)


def windows(size: Sequence[int], tile: tuple[int, int] | None, overlap: float) -> list[tuple[int, int, int, int]]:
    """(left, top, width, height) of tiles that cover a picture of (H, W)."""
    height, width = size
    if tile is None:
        return [(0, 0, width, height)]
    rows, columns = (
        starts(side, piece, max(1, piece - math.ceil(overlap * piece))) for side, piece in zip((height, width), tile)
    )
    return [(left, top, min(tile[1], width), min(tile[0], height)) for top in rows for left in columns]


def view(image: Tensor, turns: int, mirrored: bool) -> Tensor:
    return torch.rot90(image.flip(-1) if mirrored else image, turns, (-2, -1))


def view_back(boxes: Tensor, size: tuple[int, int], turns: int, mirrored: bool) -> Tensor:
    """Boxes (N, 5) of a view as boxes of the picture (H, W) it was made from."""
    if turns == 0 and not mirrored:
        return boxes
    height, width = size
    x, y, w, h, angle = boxes.unbind(1)
    if turns == 1:  # of (H, W) -> (W, H): x' = y, y' = W - x
        x, y = width - y, x
    elif turns == 2:
        x, y = width - x, height - y
    elif turns == 3:  # x' = H - y, y' = x
        x, y = y, height - x
    angle = angle + turns * (math.pi / 2)
    if mirrored:
        x, angle = width - x, -angle
    return canonical(torch.stack([x, y, w, h, angle], 1))

"""Sheets of a super-resolution: small picture, bicubic, ours, original and error, cut out where they differ most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vantage.data.info import DataInfo
from vantage.ops.resize import resize
from vantage.tasks.segmentation.sheet import Cell, draw_sheet
from vantage.tasks.super_resolution.metrics import to_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW = 96  # pixels of the large picture that are shown, at least
SHOWN = 288  # pixels that they are shown with
TRAINING_PICTURES = 8
ERROR_GAIN = 4


@dataclass(frozen=True)
class Seen:
    """What is shown of a sample: uint8 (H, W, 3) each, and the scores of the whole pictures."""

    name: str
    small: np.ndarray
    bicubic: np.ndarray
    made: np.ndarray
    target: np.ndarray
    scores: dict[str, float]


class SuperResolutionPictures:
    """What vantage.training.pictures asks for; pictures are kept from the first samples."""

    every_validation = True

    def __init__(self, info: DataInfo, scale: int, border: int, *, limit: int = 6):
        self.info, self.scale, self.border, self.limit = info, scale, border, limit
        self.seen: list[Seen] = []

    def first_batch(self, batch: list[dict], outputs: dict) -> dict[str, Figure]:
        """outputs: the step's "images" and "targets", after whatever it did to the batch."""
        rows = []
        pairs = list(zip(batch, outputs["images"], outputs["targets"]))[:TRAINING_PICTURES]
        for sample, image, target in pairs:
            small = to_bytes(self.info.denormalize(image.detach()))
            rows.append(
                (
                    Cell(shown(small), str(sample.get("name", ""))),
                    Cell(shown(resize(small, self.scale, rounding="once")), "bicubic"),
                    Cell(shown(target), "original"),
                )
            )
        height, width = outputs["images"].shape[-2:]
        title = f"First training batch: {len(rows)} of {len(batch)} patches, {height}×{width} px, x{self.scale}"
        return {"first_batch": draw_sheet(rows, (), title=title, area=1.6)}

    def start(self) -> None:
        self.seen = []

    def update(self, batch: list[dict], outputs: dict) -> None:
        for sample, (made, scores) in zip(batch, outputs["predictions"]):
            if len(self.seen) < self.limit:
                self.seen.append(self.look(sample, made.cpu(), scores))

    def look(self, sample: dict, made: Tensor, scores: dict[str, float]) -> Seen:
        small = to_bytes(self.info.denormalize(sample["image"].cpu()))
        bicubic = resize(small, self.scale, rounding="once")
        rows, columns = most_different(made, bicubic, self.border, self.scale)
        inside = tuple(slice(part.start // self.scale, part.stop // self.scale) for part in (rows, columns))
        large = (slice(None), rows, columns)
        target = sample["target"].cpu()
        return Seen(
            str(sample["name"]),
            *(shown(one) for one in (small[(slice(None), *inside)], bicubic[large], made[large], target[large])),
            scores,
        )

    def finish(self, split: str, name_of: Callable[[int], str]) -> dict[str, Figure]:
        if not self.seen:
            return {}
        title = (
            f"x{self.scale}, {split}: where ours and bicubic differ most (scores are of whole pictures; errors "
            f"×{ERROR_GAIN})"
        )
        return {f"predictions_{split}": draw_sheet([self.row(one) for one in self.seen], (), title=title)}

    def row(self, one: Seen) -> tuple[Cell, ...]:
        scores = one.scores
        error = np.abs(one.made.astype(np.int16) - one.target) * ERROR_GAIN
        return (
            Cell(one.small, f"{one.name}, small"),
            Cell(one.bicubic, f"bicubic {scores['psnr_bicubic']:.2f} dB / {scores['ssim_bicubic']:.4f}"),
            Cell(one.made, f"ours {scores['psnr']:.2f} dB / {scores['ssim']:.4f}"),
            Cell(one.target, "original"),
            Cell(error.clip(0, 255).astype(np.uint8), "ours less original"),
        )


def most_different(a: Tensor, b: Tensor, border: int, scale: int) -> tuple[slice, slice]:
    """The window of two pictures (C, H, W), inside the border and on the grid of the small picture, with the largest
    mean difference; of small pictures all that is left."""
    height, width = a.shape[-2:]
    start = -(-border // scale) * scale
    step = 4 * scale
    sides = []
    for length in (height, width):
        room = (length - 2 * start) // scale * scale
        sides.append(min(room, -(-WINDOW // scale) * scale))
    differences = (a.float() - b.float()).abs().mean(0)[start : height - start, start : width - start]
    means = F.avg_pool2d(differences[None, None], sides, stride=step)[0, 0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    tops = (start + step * row, start + step * column)
    return tuple(slice(top, top + side) for top, side in zip(tops, sides))


def shown(picture: Tensor) -> np.ndarray:
    """uint8 (C, H, W) -> (h, w, 3), multiplied by an integer, so that its pixels stay visible."""
    picture = picture.detach().cpu()
    picture = picture.expand(3, -1, -1) if len(picture) == 1 else picture
    times = max(1, SHOWN // max(picture.shape[-2:]))
    enlarged = torch.repeat_interleave(torch.repeat_interleave(picture, times, 1), times, 2)
    return enlarged.permute(1, 2, 0).numpy()

"""Figures of a segmentation: ground truth beside prediction and errors, IoU per class, the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vantage.analysis.confusion import COUNTS_UP_TO, draw_confusion
from vantage.data.info import DataInfo
from vantage.data.masks import IGNORE
from vantage.tasks.segmentation.bars import draw_per_class
from vantage.tasks.segmentation.legend import legend_of
from vantage.tasks.segmentation.metrics import count_confusion, scores_of
from vantage.tasks.segmentation.paint import (
    paint_errors,
    paint_labels,
    paint_overlay,
    resize_mask,
    resize_picture,
    shown_size,
    to_picture,
)
from vantage.tasks.segmentation.palette import palette_of
from vantage.tasks.segmentation.sheet import Cell, draw_sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_SIDE, MOST_SIDE = 256, 512  # pixels of what is kept and shown: more do not fit a sheet
TRAINING_PICTURES = 12


@dataclass(frozen=True)
class Seen:
    """What is kept of a sample, in the size it is shown: picture (H, W, 3), both masks (H, W), all uint8."""

    name: str
    picture: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    miou: float  # of the sample's own size
    pixel_acc: float


def middle_slice(mask: Tensor) -> int:
    """Of a volume (D, H, W) the slice with the most classes; of several, the middle one."""
    pixels = torch.stack([part.flatten().long().bincount(minlength=256) for part in mask])  # (D, 256)
    counts = (pixels[:, :IGNORE] > 0).sum(1)
    best = (counts == counts.max()).nonzero().flatten()
    return int(best[(len(best) - 1) // 2])


class SegmentationPictures:
    """When to draw what is the callback's to say (vantage.training.pictures), what to draw is said here.

    `results` is where the task leaves what its metrics computed, by split; pictures are kept from the first batches.
    """

    every_validation = True

    def __init__(self, info: DataInfo, results: dict[str, dict], *, limit: int = 6):
        self.info = info
        self.palette = palette_of(info)
        self.results = results
        self.limit = limit
        self.seen: list[Seen] = []

    def first_batch(self, batch: list[dict], outputs: dict) -> dict[str, Figure]:
        """outputs: the step's "images" (B, C, H, W) and "masks" (B, H, W), after whatever it did to the batch."""
        images, masks = outputs["images"], outputs["masks"]
        cells, shown = [], []
        for sample, image, mask in list(zip(batch, images, masks))[:TRAINING_PICTURES]:
            picture, mask = self.scaled(image, mask.cpu().numpy())
            cells.append(Cell(paint_overlay(picture, mask, self.palette), str(sample.get("name", ""))))
            shown.append(mask)
        height, width = images.shape[-2:]
        title = f"First training batch as the model sees it: {len(cells)} of {len(batch)} images, {height}×{width} px"
        rows = [cells[start : start + 4] for start in range(0, len(cells), 4)]
        entries = legend_of(shown, self.info.class_names, self.palette)
        return {"first_batch": draw_sheet(rows, entries, title=title)}

    def start(self) -> None:
        self.seen = []

    def update(self, batch: list[dict], outputs: dict) -> None:
        for sample, prediction in zip(batch, outputs["predictions"]):
            if len(self.seen) >= self.limit:
                return
            self.seen.append(self.look(sample, prediction))

    def look(self, sample: dict, prediction: Tensor) -> Seen:
        """The scores are the whole sample's, also of a volume."""
        name, image, mask = str(sample.get("name", "")), sample["image"], sample["mask"].cpu()
        prediction = prediction.cpu()
        scores = scores_of(count_confusion(prediction, mask, self.info.num_classes))
        if mask.ndim == 3:
            depth = middle_slice(mask)
            name = f"{name} · slice {depth + 1} of {len(mask)}"
            image, mask, prediction = image[depth], mask[depth], prediction[depth]
        picture, truth, prediction = self.scaled(image, mask.numpy(), prediction.numpy())
        return Seen(name, picture, truth, prediction, float(scores["mIoU"]), float(scores["pixel_acc"]))

    def scaled(self, image: Tensor, *masks: np.ndarray) -> tuple[np.ndarray, ...]:
        """Picture and masks in the size they are shown, which follows the masks: the image may have another one."""
        size = shown_size(*masks[0].shape, least=LEAST_SIDE, most=MOST_SIDE)
        picture = resize_picture(to_picture(image, self.info), size)
        return picture, *(resize_mask(mask, size) for mask in masks)

    def finish(self, split: str, name_of: Callable[[int], str]) -> dict[str, Figure]:
        figures = {}
        if self.seen:
            figures["predictions"] = self.draw_predictions(split)
        results = self.results.get(split)
        if results:
            figures["per_class"] = self.draw_per_class(split, results)
            figures["confusion_matrix"] = self.draw_confusions(split, results["confusion"])
        return {f"{name}_{split}": figure for name, figure in figures.items()}

    def draw_predictions(self, split: str) -> Figure:
        rows = [self.row(one) for one in self.seen]
        masks = [mask for one in self.seen for mask in (one.truth, one.prediction)]
        entries = legend_of(masks, self.info.class_names, self.palette)
        title = f"Ground truth, prediction and errors, {split} (red: wrong; hatched: ignored, not scored)"
        return draw_sheet(rows, entries, title=title)

    def row(self, one: Seen) -> Sequence[Cell]:
        scores = f"mIoU {one.miou:.3f} · pixel acc. {one.pixel_acc:.3f}" if one.miou == one.miou else "nothing to score"
        return (
            Cell(one.picture, one.name),
            Cell(paint_labels(one.truth, self.palette), "ground truth"),
            Cell(paint_labels(one.prediction, self.palette), "prediction"),
            Cell(paint_errors(one.picture, one.truth, one.prediction), scores),
        )

    def draw_per_class(self, split: str, results: dict) -> Figure:
        names, per_class, mean = self.info.class_names, results["per_class"], float(results["mIoU"])
        there = int((~np.isnan(per_class["iou"])).sum())
        title = f"IoU per class, {split}: mean {mean:.3f} (dashed) over {there} of {len(names)} classes"
        return draw_per_class(
            per_class["iou"], per_class["pixels"], names, self.palette,
            absent=results["absent"], mean=mean, title=title,
        )  # fmt: skip

    def draw_confusions(self, split: str, counts: Tensor) -> Figure:
        """Pixels are too many for a cell: what is written there is ‰ of the true class; lists count large units."""
        counts = counts.detach().cpu().double()
        title = f"Confusion, {split}: {float(counts.diagonal().sum() / counts.sum().clamp(min=1)):.2%} of pixels right"
        if len(counts) <= COUNTS_UP_TO:
            shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
            return draw_confusion(
                (1000 * shares).round(), self.info.class_names, title=f"{title} (cells in ‰ of a row)"
            )
        wrong = float((counts - counts.diagonal().diag()).max())
        unit = max(unit for unit in (1, 1_000, 1_000_000) if unit == 1 or wrong >= 100 * unit)
        counted = "pixels" if unit == 1 else f"{unit:,} pixels"
        return draw_confusion(counts / unit, self.info.class_names, title=f"{title} (counts in {counted})")

    def mask_panels(self, split: str) -> list[dict]:
        """The pictures of the last pass for loggers that lay masks over them: name, image (H, W, 3), prediction and
        ground_truth (H, W), all uint8, and class_labels, the names of their values.
        """
        class_labels = dict(enumerate(self.info.class_names)) | {IGNORE: "ignore"}
        return [
            {
                "name": one.name,
                "image": one.picture,
                "prediction": one.prediction,
                "ground_truth": one.truth,
                "class_labels": class_labels,
            }
            for one in self.seen
        ]

"""Tables of a test: per_image.csv and per_class.csv. What is undefined stays empty."""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

PER_CLASS = ("pixels", "predicted", "iou", "dice", "acc")


def picture_row(name: str, scores: dict) -> tuple[str, float, float, float]:
    """What per_image.csv says of a picture or volume, of its `scores_of`: mIoU, pixel accuracy, foreground Dice.

    Foreground Dice is the mean over the classes but the first that are there, the figure of medical data, whose class 0
    is what nobody looks for; NaN if none is.
    """
    dice = scores["per_class"]["dice"][1:]
    dice = dice[~np.isnan(dice)]
    foreground = float(dice.mean()) if len(dice) else math.nan
    return name, float(scores["mIoU"]), float(scores["pixel_acc"]), foreground


def write_per_image(path: Path, rows: Iterable[tuple[str, float, float, float]]) -> None:
    """One row per picture, as `picture_row` makes it."""
    write(path, ("name", "mIoU", "pixel_acc", "foreground_dice"), rows)


def write_per_class(path: Path, class_names: Sequence[str], per_class: dict[str, np.ndarray]) -> None:
    """One row per class: pixels it has, pixels predicted as it, IoU, Dice, accuracy, and whatever else was computed."""
    keys = (*PER_CLASS, *(key for key in per_class if key not in PER_CLASS))
    columns = [np.asarray(per_class[name]).tolist() for name in keys]
    rows = ((label, *row) for label, row in enumerate(zip(class_names, *columns, strict=True)))
    write(path, ("label", "class", *keys), rows)


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(["" if isinstance(value, float) and math.isnan(value) else value for value in row])

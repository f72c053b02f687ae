"""The tables of a test, read back."""

import csv
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from vantage.tasks.segmentation.metrics import count_confusion, scores_of
from vantage.tasks.segmentation.tables import picture_row, write_per_class, write_per_image


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_have_a_row_each(tmp_path):
    path = tmp_path / "new" / "per_image.csv"
    write_per_image(path, [("a, b.png", 0.5, 0.75, 0.25), ("ignored", math.nan, math.nan, math.nan)])
    assert path.read_text().splitlines()[0] == "name,mIoU,pixel_acc,foreground_dice"
    assert read(path) == [
        {"name": "a, b.png", "mIoU": "0.5", "pixel_acc": "0.75", "foreground_dice": "0.25"},
        {"name": "ignored", "mIoU": "", "pixel_acc": "", "foreground_dice": ""},
    ]


def test_foreground_dice_is_the_mean_over_the_organs_that_are_there():
    mask = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 255]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 1, 1, 1], [2, 0, 3, 3]], dtype=torch.uint8)
    row = picture_row("case", scores_of(count_confusion(prediction, mask, 5)))
    scored = mask.flatten() != 255
    dices = f1_score(mask.flatten()[scored], prediction.flatten()[scored], labels=[1, 2], average=None)
    assert row[3] == pytest.approx(dices.mean())  # 3 and 4 are not there, 0 is background
    nothing = torch.zeros(2, 2, dtype=torch.uint8)
    assert math.isnan(picture_row("empty", scores_of(count_confusion(nothing, nothing, 5)))[3])


def per_class(**columns):
    undefined = np.array([0.25, np.nan])
    return {
        **{name: undefined for name in ("iou", "acc", "dice")},
        "pixels": np.array([10**12, 0]),
        "predicted": np.array([7, 3]),
        **columns,
    }


def test_classes_have_a_row_each_and_what_is_undefined_is_empty(tmp_path):
    path = tmp_path / "per_class.csv"
    write_per_class(path, ["road", "sky"], per_class(dice=np.array([0.4, np.nan])))
    assert path.read_text().splitlines() == [
        "label,class,pixels,predicted,iou,dice,acc",
        "0,road,1000000000000,7,0.25,0.4,0.25",
        "1,sky,0,3,,,",
    ]


def test_what_else_was_computed_has_a_column(tmp_path):
    path = tmp_path / "per_class.csv"
    write_per_class(path, ["road", "sky"], per_class(hd95=np.array([1.5, np.nan]), missed=np.array([0, 2])))
    assert [(row["hd95"], row["missed"]) for row in read(path)] == [("1.5", "0"), ("", "2")]


def test_a_class_without_a_name_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="longer"):
        write_per_class(tmp_path / "per_class.csv", ["road"], per_class())

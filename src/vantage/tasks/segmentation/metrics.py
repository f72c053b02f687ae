"""IoU, accuracy and Dice of class maps over a whole data set, from one confusion matrix that adds up.

With n_ij the pixels of true class i that were predicted as j, ignored pixels left out, summed over all pictures first:
    IoU_c  = n_cc / (sum_j n_cj + sum_i n_ic - n_cc)
    acc_c  = n_cc / sum_j n_cj
    Dice_c = 2 n_cc / (sum_j n_cj + sum_i n_ic)
    pixel_acc = sum_c n_cc / sum_ij n_ij
Source: Long et al. 2015, arXiv:1411.4038, section 5; the data-set IoU of PASCAL VOC (Everingham et al. 2015, IJCV 111).
Averages of per-picture scores are other numbers (torchmetrics' segmentation.MeanIoU, DiceScore as it comes).

A class without a true pixel in the data is absent: NaN in its own values, named in `absent`, out of every mean.
Pixels wrongly given to it still count against the classes they were taken from. mmsegmentation gives such a class IoU 0
in the mean as soon as one pixel is predicted as it, and so does torchmetrics' MulticlassJaccardIndex (macro), which
also reports 0 for it where average="none": there a single stray pixel of an absent class moves the mean by 1/K, here it
does not. Where no absent class is predicted, all three means agree.
"""

import torch
import torchmetrics
from torch import Tensor

from vantage.data.masks import IGNORE


class SegmentationMetrics(torchmetrics.Metric):
    """update(prediction, mask): an integer class map and a uint8 mask of one shape, of one picture or volume.

    compute() -> {
        "mIoU", "mean_acc", "mDice"  means over the classes present; "pixel_acc"; NaN if no pixel was labelled
        "per_class"   {name: array (classes,)}: iou, acc, dice (NaN if absent), pixels (true ones), predicted; arrays,
                      for torchmetrics makes scalars of tensors of one element
        "absent"      the classes without a true pixel
        "confusion"   int64 (classes, classes), rows true, columns predicted
        "pictures", "ignored"  how many updates; how many pixels carried 255
    }
    The result does not depend on the order of pictures or their share among processes. Memory is O(classes^2).
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = checked_classes(num_classes)
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("ignored", torch.zeros(1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("pictures", torch.zeros(1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, mask: Tensor) -> None:
        counts = count_confusion(prediction, mask, self.num_classes).to(self.confusion.device)
        self.confusion += counts
        self.ignored += mask.numel() - counts.sum()
        self.pictures += 1

    def compute(self) -> dict:
        scores = scores_of(self.confusion)
        return {
            **{
                name: value.to(self.device, torch.float32) if isinstance(value, Tensor) else value
                for name, value in scores.items()
            },
            "confusion": self.confusion.cpu(),  # torchmetrics clones what is returned
            "pictures": int(self.pictures),
            "ignored": int(self.ignored),
        }


def count_confusion(prediction: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """(classes, classes) int64 pixel counts of one picture, rows true, columns predicted, on the masks' device.

    prediction: classes 0..K-1, any integer type (uint8 is the fastest); mask: uint8, the same shape, 255 = ignored.
    Raises: ValueError if the shapes differ or a value is out of range.
    """
    prediction, mask = checked_maps(prediction, mask, num_classes)
    # 255 wraps around to 0: ignored pixels fill a row of their own, and none has to be picked out (10x the time).
    # int32 in place: half the memory traffic of bincount's usual int64
    cells = (mask + 1).int()
    cells *= num_classes
    cells += prediction
    return torch.bincount(cells.flatten(), minlength=(num_classes + 1) * num_classes).view(-1, num_classes)[1:]


def scores_of(confusion: Tensor) -> dict:
    """The scores of a confusion matrix (classes, classes), as `SegmentationMetrics.compute` names them, in float64."""
    counts = confusion.cpu().double()
    hits, pixels, predicted = counts.diag(), counts.sum(1), counts.sum(0)
    truths = pixels.where(pixels > 0, torch.nan)
    per_class = {
        "iou": hits / (truths + predicted - hits),
        "acc": hits / truths,
        "dice": 2 * hits / (truths + predicted),
    }
    return {
        "mIoU": per_class["iou"].nanmean(),
        "pixel_acc": hits.sum() / counts.sum(),
        "mean_acc": per_class["acc"].nanmean(),
        "mDice": per_class["dice"].nanmean(),
        "per_class": {
            **{name: values.numpy() for name, values in per_class.items()},
            "pixels": pixels.long().numpy(),
            "predicted": predicted.long().numpy(),
        },
        "absent": (pixels == 0).nonzero()[:, 0].tolist(),
    }


def checked_classes(num_classes: int) -> int:
    if not 2 <= num_classes <= IGNORE:
        raise ValueError(
            f"num_classes is {num_classes}; masks hold 2 to {IGNORE} classes, the background being one where there is"
        )
    return num_classes


def checked_maps(prediction: Tensor, mask: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Both as uint8. Raises: ValueError if they are no class map and mask of the same pixels and classes."""
    if prediction.shape != mask.shape:
        raise ValueError(
            f"the prediction is {tuple(prediction.shape)} and the mask {tuple(mask.shape)}; "
            "resize the logits to the mask's size before the argmax"
        )
    for name, values in (("prediction", prediction), ("mask", mask)):
        if values.dtype.is_floating_point:
            raise ValueError(f"the {name} is {values.dtype}; give class indices, uint8 or another integer type")
    last = num_classes - 1
    if prediction.dtype != torch.uint8 or int(prediction.max()) > last:
        classes = prediction.long()
        wrong = classes[(classes < 0) | (classes > last)]
        if len(wrong):
            raise ValueError(f"a predicted class is {int(wrong[0])}; classes are 0..{last}")
    # in uint8, 255 + 1 = 0: one maximum tells a good mask, which a mask nearly always is
    if mask.dtype != torch.uint8 or int((mask + 1).max()) > num_classes:
        labels = mask.long()
        wrong = labels[((labels < 0) | (labels > last)) & (labels != IGNORE)]
        if len(wrong):
            raise ValueError(
                f"a mask holds the label {int(wrong[0])}; labels are 0..{last}, and {IGNORE} where a pixel is ignored: "
                "check the data's classes or its label map"
            )
    return prediction.to(torch.uint8), mask.to(torch.uint8)

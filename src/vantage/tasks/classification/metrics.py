"""Metrics of a classifier over a whole split, from counts that add up over batches and processes."""

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F


class ClassificationMetrics(torchmetrics.Metric):
    """update(logits (B, classes), labels (B,)); compute() -> {"loss", "acc1", "acc5", "mean_class_acc", "ece"}.

    loss            mean cross entropy, without smoothing
    acc1, acc5      share of images whose label is the most probable class, or among the five (more than 5 classes)
    mean_class_acc  mean over the classes that have images of the share of them that is right (balanced accuracy)
    ece             sum over 15 bins of confidence of (share of images) * |accuracy - mean confidence|; Guo et al.
                    2017, arXiv:1706.04599, binned as in torchmetrics' MulticlassCalibrationError

    compute() also returns "per_class", int64 (classes, 3): images, of them right, and predictions of the class.
    Memory is O(classes), however large the split.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    def __init__(self, num_classes: int, num_bins: int = 15):
        super().__init__()
        self.num_classes = num_classes
        self.num_bins = num_bins
        # one slot more than bins: torchmetrics counts a confidence of exactly 1 on its own
        for name, slots, dtype in (
            ("loss_sum", 1, torch.float32),
            ("top5", 1, torch.int64),
            ("per_class", num_classes * 3, torch.int64),
            ("bin_images", num_bins + 1, torch.int64),
            ("bin_right", num_bins + 1, torch.int64),
            ("bin_confidence", num_bins + 1, torch.float32),
        ):
            self.add_state(name, torch.zeros(slots, dtype=dtype), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        logits = logits.float()
        confidences, predictions = logits.softmax(1).max(1)
        right = predictions == labels
        self.loss_sum += F.cross_entropy(logits, labels, reduction="sum")
        self.per_class += torch.stack(
            [
                torch.bincount(labels, minlength=self.num_classes),
                torch.bincount(labels[right], minlength=self.num_classes),
                torch.bincount(predictions, minlength=self.num_classes),
            ],
            dim=1,
        ).flatten()
        if self.num_classes > 5:
            self.top5 += (logits.topk(5, dim=1).indices == labels[:, None]).sum()
        edges = torch.linspace(0, 1, self.num_bins + 1, device=logits.device)
        bins = torch.bucketize(confidences, edges, right=True) - 1
        self.bin_images += torch.bincount(bins, minlength=self.num_bins + 1)
        self.bin_right += torch.bincount(bins[right], minlength=self.num_bins + 1)
        self.bin_confidence += torch.zeros_like(self.bin_confidence).index_add_(0, bins, confidences)

    def compute(self) -> dict[str, Tensor]:
        per_class = self.per_class.view(self.num_classes, 3)
        images, right = per_class[:, 0], per_class[:, 1]
        total = images.sum()
        seen = images > 0
        values = {"loss": self.loss_sum[0] / total, "acc1": right.sum() / total}
        if self.num_classes > 5:
            values["acc5"] = self.top5[0] / total
        values["mean_class_acc"] = (right[seen] / images[seen]).mean()
        values["ece"] = (self.bin_right - self.bin_confidence).abs().sum() / total
        return {**values, "per_class": per_class.clone()}

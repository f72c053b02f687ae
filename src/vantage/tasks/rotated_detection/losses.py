"""Losses of the heads: what a box is compared by, angles as smooth classes, the sums over positives of all processes.

The distances between boxes themselves (Gaussian, rotated IoU) are in vantage.ops.rotated_boxes.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional as F

from vantage.ops import rotated_boxes
from vantage.tasks.rotated_detection.coders import wrap

BoxLossName = Literal["rotated_iou", "gwd", "kld", "kfiou", "probiou", "smooth_l1"]

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rotated_iou": rotated_boxes.rotated_iou_loss,
    "gwd": rotated_boxes.gwd_loss,
    "kld": rotated_boxes.kld_loss,
    "kfiou": rotated_boxes.kfiou_loss,
    "probiou": rotated_boxes.probiou_loss,
}


def check_box_loss(name: str) -> None:
    known = get_args(BoxLossName)
    if name not in known:
        raise ValueError(f"task.detector.box_loss is {name!r}; use one of {', '.join(known)}")


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """-alpha_t (1 - p_t)^gamma log p_t per element, targets in [0, 1] of the logits' shape.

    Lin et al., Focal Loss (2017), arXiv:1708.02002; soft targets as in CSL: p_t and alpha_t are interpolated.
    """
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    right = probability * targets + (1 - probability) * (1 - targets)
    return (alpha * targets + (1 - alpha) * (1 - targets)) * (1 - right) ** gamma * cross_entropy


def smooth_l1(predicted: Tensor, targets: Tensor, *, beta: float) -> Tensor:
    """(N, K) -> (N,): sum over the K numbers; beta = 0 is L1."""
    return F.smooth_l1_loss(predicted, targets, beta=beta, reduction="none").sum(-1)


class CircularSmoothLabel:
    """An angle in [-pi/2, pi/2) as one of `bins` classes whose neighbours, around the circle, are partly right.

        target_k = exp(-d^2 / (2 r^2)),  d the circular distance in bins from the angle's own,  0 where d > r
    Source: Yang and Yan, Arbitrary-Oriented Object Detection with Circular Smooth Label (2020), arXiv:2003.05597.
    """

    def __init__(self, bins: int = 180, radius: float = 6.0):
        if bins < 2 or radius <= 0:
            raise ValueError(f"circular smooth labels of {bins} bins and radius {radius}; use bins >= 2, radius > 0")
        self.bins = bins
        self.radius = radius

    def encode(self, angles: Tensor) -> Tensor:
        """(N,) -> (N, bins) in [0, 1]."""
        own = self.index(angles)
        distance = (torch.arange(self.bins, device=angles.device) - own[:, None]).abs()
        distance = torch.minimum(distance, self.bins - distance).to(angles.dtype)
        return torch.where(distance <= self.radius, torch.exp(-(distance**2) / (2 * self.radius**2)), 0.0)

    def index(self, angles: Tensor) -> Tensor:
        """(N,) -> (N,) int64: the bin whose centre, k pi / bins - pi / 2, is nearest."""
        return ((wrap(angles) + math.pi / 2) * (self.bins / math.pi)).round().long() % self.bins

    def decode(self, logits: Tensor) -> Tensor:
        """(..., bins) -> (...): the centre of the most probable bin."""
        return logits.argmax(-1).to(logits.dtype) * (math.pi / self.bins) - math.pi / 2

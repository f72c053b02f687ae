"""What a segmentation is trained by: the terms of vantage.tasks.losses that score every pixel by itself.

A term is a module: logits (B, K, H, W) float32 and masks (B, H, W) uint8, 255 to be ignored -> scalar. Its classes are
those of the logits. What it says does not depend on ignored pixels; where all are ignored it is 0 and so is its
gradient, so that a batch without labels is no special case, in distributed training neither.

Terms that score regions or contours: losses_dice.py, losses_lovasz.py, losses_boundary.py. One of your own:
    '+task.loss.terms.mine={_target_: my.module.Mine}' '+task.loss.weights.mine=0.5'
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vantage.data.masks import IGNORE


class CrossEntropy(nn.Module):
    """sum_i w[y_i] (-log p_i[y_i]) / sum_i w[y_i] over the pixels i that are not ignored, p the softmax.

    class_weights    K numbers; null: all 1
    label_smoothing  share of the target spread evenly over the K classes, as torch does it
    """

    def __init__(self, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"task.loss.terms.cross_entropy.label_smoothing is {label_smoothing}; it is in [0, 1)")
        self.class_weights = per_class(class_weights, "cross_entropy.class_weights")
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        weights = tensor_of(self.class_weights, logits, "cross_entropy.class_weights")
        losses = pixel_cross_entropy(logits, masks, weights=weights, label_smoothing=self.label_smoothing)
        total = (masks != IGNORE).sum() if weights is None else look_up(weights, masks).sum()
        return losses.sum() / torch.where(total > 0, total, 1)


class OHEM(nn.Module):
    """Cross entropy of the hardest pixels: mean over those whose true class has a probability below `threshold`, or
    over the `min_kept` hardest of the batch (all, if it has fewer) where these are more.

    Pixels as hard as the last one kept are kept too, so that the choice does not hang on an order.
    Source: Shrivastava et al., Training Region-based Object Detectors with Online Hard Example Mining (2016),
    arXiv:1604.03540, which picks boxes; a threshold and a least number of pixels are what segmentation made of it.
    """

    def __init__(self, threshold: float = 0.7, min_kept: int = 100_000):
        super().__init__()
        if not 0 < threshold <= 1:
            raise ValueError(f"task.loss.terms.ohem.threshold is {threshold}; it is a probability in (0, 1]")
        if min_kept < 1:
            raise ValueError(f"task.loss.terms.ohem.min_kept is {min_kept}; it must be 1 or more")
        self.threshold = threshold
        self.min_kept = min_kept

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        valid = masks != IGNORE
        losses = pixel_cross_entropy(logits, masks)
        ranked = torch.where(valid, losses.detach(), -1.0).flatten()  # the ignored behind all others
        # topk: kthvalue has no deterministic CUDA version; the number of valid pixels stays on the device
        last_kept = ranked.topk(min(self.min_kept, ranked.numel()), sorted=False).values.min()
        kept = valid & ((losses > -math.log(self.threshold)) | (losses >= last_kept))
        return torch.where(kept, losses, 0.0).sum() / kept.sum().clamp(min=1)


class Focal(nn.Module):
    """mean of -alpha[y] (1 - p[y])^gamma log p[y] over the pixels that are not ignored, p the softmax.

    gamma  0 is cross entropy
    alpha  K weights of the classes; null: all 1. Unlike class_weights they do not enter what is divided by
    Source: Lin et al., Focal Loss for Dense Object Detection (2017), arXiv:1708.02002, which has it with sigmoids.
    """

    def __init__(self, gamma: float = 2.0, alpha: Sequence[float] | None = None):
        super().__init__()
        if not 0 <= gamma < math.inf:
            raise ValueError(f"task.loss.terms.focal.gamma is {gamma}; it must be 0 or more")
        self.gamma = gamma
        self.alpha = per_class(alpha, "focal.alpha")

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        losses = pixel_cross_entropy(logits, masks)
        # 1 - p without cancellation; above 0, where the power has an infinite slope for gamma < 1
        wrong = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)
        losses = wrong**self.gamma * losses
        alpha = tensor_of(self.alpha, logits, "focal.alpha")
        if alpha is not None:
            losses = losses * look_up(alpha, masks)
        return losses.sum() / (masks != IGNORE).sum().clamp(min=1)


def pixel_cross_entropy(
    logits: Tensor, masks: Tensor, *, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """(B, K, H, W), (B, H, W) -> (B, H, W), 0 where ignored.

    Not reduced by torch: that would be 0/0 without labels, and on CUDA has no deterministic version.
    """
    return F.cross_entropy(
        logits,
        masks.long(),
        weight=weights,
        ignore_index=IGNORE,
        reduction="none",
        label_smoothing=label_smoothing,
    )


def per_class(values: Sequence[float] | None, key: str) -> tuple[float, ...] | None:
    """Checked numbers, kept as numbers: a buffer would be rounded where a model is turned to bfloat16."""
    if values is None:
        return None
    values = tuple(float(value) for value in values)
    if not all(0 <= value < math.inf for value in values):
        raise ValueError(f"task.loss.terms.{key} is {list(values)}; each must be 0 or more")
    return values


def tensor_of(values: tuple[float, ...] | None, logits: Tensor, key: str) -> Tensor | None:
    """One number per class (K,), on the logits' device."""
    if values is None:
        return None
    if len(values) != logits.shape[1]:
        raise ValueError(
            f"task.loss.terms.{key} has {len(values)} numbers and the data has {logits.shape[1]} classes; give one for "
            "each, in the order of the classes, or null"
        )
    return logits.new_tensor(values)


def look_up(values: Tensor, masks: Tensor) -> Tensor:
    """values (K,), masks (B, H, W) -> (B, H, W), 0 where ignored."""
    table = values.new_zeros(IGNORE + 1)
    table[: len(values)] = values
    return table[masks.long()]

"""Soft Dice: how much the probability of a class overlaps with its pixels, over the whole batch."""

import torch
from torch import Tensor, nn

from vantage.data.masks import IGNORE


class Dice(nn.Module):
    """Mean over classes of 1 - (2 sum_i p_i g_i + s) / (sum_i p_i + sum_i g_i + s), s the smoothing.

    p_i is the softmax probability of the class at pixel i and g_i whether it is the truth; sums go over all pixels of
    the batch that are not ignored.

    squared             p_i^2 and g_i^2 in the denominator, as the paper has it; sums of p_i and g_i are what most use
    include_background  whether class 0 counts
    include_absent      whether classes without a pixel in the batch count; only the smoothing keeps their loss below 1,
                        however little they are predicted
    Memory: softmax and its gradient, (B, K, H, W) each, and one more for a moment; no one-hot masks.
    Source: Milletari et al., V-Net (2016), arXiv:1606.04797, for one class against the background.
    """

    def __init__(
        self,
        smoothing: float = 1.0,
        squared: bool = False,
        include_background: bool = True,
        include_absent: bool = False,
    ):
        super().__init__()
        if smoothing < 0:
            raise ValueError(f"task.loss.terms.dice.smoothing is {smoothing}; it must be 0 or more")
        if smoothing == 0 and include_absent:
            raise ValueError(
                "task.loss.terms.dice.smoothing is 0, without which an absent class has no gradient; "
                "use smoothing=1.0 or include_absent=false"
            )
        self.smoothing = smoothing
        self.squared = squared
        self.include_background = include_background
        self.include_absent = include_absent

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        valid = masks != IGNORE
        labels = masks.long().masked_fill(~valid, 0)
        probabilities = logits.softmax(1)
        of_truth = probabilities.gather(1, labels[:, None])[:, 0]  # (B, H, W)
        num_classes = logits.shape[1]
        intersection = sums_by_class(of_truth.masked_fill(~valid, 0), labels, num_classes)
        actual = sums_by_class(valid.to(logits.dtype), labels, num_classes)
        predicted = probabilities.square() if self.squared else probabilities
        predicted = predicted.masked_fill(~valid[:, None], 0).sum((0, 2, 3))
        counted = torch.ones_like(actual, dtype=torch.bool) if self.include_absent else actual > 0
        if not self.include_background:
            counted[0] = False
        # without smoothing an absent class would be 0/0, whose gradient is NaN even where it is not used
        sizes = torch.where(counted, predicted + actual + self.smoothing, 1)
        losses = 1 - (2 * intersection + self.smoothing) / sizes
        return (losses * counted).sum() / counted.sum().clamp(min=1)


def sums_by_class(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """values, labels (B, H, W) -> (K,): the values summed over the pixels of each class.

    Row by row first: float32 stops counting at 2^24, and 16 pictures of 1024 x 1024 have as many pixels.
    """
    width = labels.shape[-1]
    rows = values.new_zeros(labels.numel() // width, num_classes)
    return rows.scatter_add(1, labels.reshape(-1, width), values.reshape(-1, width)).sum(0)

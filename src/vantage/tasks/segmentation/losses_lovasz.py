"""Lovász-softmax: the mean intersection over union itself, made continuous and piecewise linear.

Source: Berman et al., The Lovász-Softmax Loss (2018), arXiv:1705.08790.
    m_i = 1 - p_i[c] where c is the truth at pixel i, else p_i[c]             errors of class c
    loss_c = sum_i m_i (J(first i) - J(first i - 1)),  pixels in falling order of error
J(S) = 1 - IoU if exactly the pixels S were wrong, so that for hard predictions loss_c is 1 - IoU_c.
Cost: a sort of all B * H * W pixels for each class present, about 30 ms of a core per class and 512 x 512 picture;
5 bytes per pixel and class present are kept for backward.
"""

import torch
from torch import Tensor, nn

from vantage.data.masks import IGNORE


class Lovasz(nn.Module):
    """The mean of loss_c over the classes that have a pixel.

    per_image  each picture by itself, then the mean over those with a label; else the batch as one picture
    """

    def __init__(self, per_image: bool = False):
        super().__init__()
        self.per_image = per_image

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        probabilities = logits.softmax(1)
        size = 1 if self.per_image else len(masks)
        losses = [over_classes(*group) for group in zip(probabilities.split(size), masks.split(size))]
        losses = [torch.stack(by_class).mean() for by_class in losses if by_class]
        return torch.stack(losses).mean() if losses else 0 * probabilities.sum()


def over_classes(probabilities: Tensor, masks: Tensor) -> list[Tensor]:
    """(B, K, H, W), (B, H, W) -> loss_c of every class present, in the order of the classes."""
    masks = masks.flatten()
    valid = masks != IGNORE
    present = torch.bincount(masks, minlength=IGNORE + 1)[:IGNORE].nonzero().flatten().tolist()
    by_class = probabilities.unbind(1)  # one gradient for all, where indexing would make a full one per class
    return [extension(by_class[index].flatten(), masks == index, valid) for index in present]


def extension(probability: Tensor, is_class: Tensor, valid: Tensor) -> Tensor:
    """loss_c from p_i[c], whether c is the truth, and whether i counts, all (N,)."""
    errors = torch.where(is_class, 1 - probability, probability)
    with torch.no_grad():  # piecewise linear: the slopes are constants
        # the ignored last: once all pixels of the class are lost, no step is left for them
        order = errors.masked_fill(~valid, -1).argsort(descending=True, stable=True)
        slopes = torch.empty_like(errors).scatter_(0, order, jaccard_steps(is_class[order]).to(errors.dtype))
    return (errors * slopes).sum()


def jaccard_steps(is_class: Tensor) -> Tensor:
    """(N,) bool, in falling order of error -> (N,): by how much 1 - IoU grows as one pixel more is wrong.

    With I true pixels still right and U pixels true or wrongly taken for the class, IoU = I / U. A true pixel takes one
    from I and the step is 1 / U; any other adds one to U and the step is I / (U (U - 1)). Differences of neighbouring
    IoUs would be the same but, in float32 and over a million pixels, mostly rounding.
    """
    lost = is_class.cumsum(0)
    added = torch.arange(1, len(lost) + 1, device=lost.device) - lost
    union = lost[-1] + added
    return torch.where(is_class, 1 / union, (lost[-1] - lost) / (union * (union - 1)))

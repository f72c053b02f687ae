"""Boundary loss: probability weighs as much as it is far from the true contour, negatively where it is right.

Source: Kervadec et al., Boundary loss for highly unbalanced segmentation (2019), arXiv:1812.07032, for one class.
    loss = mean over pixels i and classes k of p_i[k] phi_i[k]
    phi_i[k] = distance of i to the nearest pixel of class k, less 1/2                outside k, in pixels
             = 1/2 - distance of i to the nearest pixel of another class              inside k
The contour runs between the pixels. The paper's code has it through the outermost pixels of the class: phi is larger by
1/2 everywhere, which changes no gradient where all classes are shown, but makes a class that is not shown, whose phi is
0, as good a choice on the rim as the right one.
"""

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from vantage.data.masks import IGNORE


class Boundary(nn.Module):
    """The loss above, picture by picture over the classes it shows; it may be negative.

    A class that a picture does not show has no contour there and counts neither in the sum nor in the mean, and so a
    picture of one class adds nothing. Ignored pixels are of no class and do not count.
    It is meant to stand beside another term, with a weight of about 0.01 as distances reach hundreds of pixels: alone
    it hardly sees small objects that are missed.
    Cost: one distance transform on the CPU per picture and class shown, about 10 ms at 512 x 512, for which masks on
    another device are copied; 4 bytes per pixel and class shown are kept for backward.
    """

    def __init__(self) -> None:  # nn.Module's own takes any keyword, so that a typo would get past the check
        super().__init__()

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        probabilities = logits.softmax(1)
        sums = []
        for probability, mask in zip(probabilities.unbind(0), masks.cpu().numpy()):
            classes = np.unique(mask[mask != IGNORE])
            if len(classes) > 1:
                distances = torch.from_numpy(signed_distances(mask, classes)).to(probability)
                shown = probability.index_select(0, torch.from_numpy(classes.astype(np.int64)).to(probability.device))
                sums.append((shown * distances).sum() / len(classes))
        if not sums:
            return 0 * probabilities.sum()
        return torch.stack(sums).sum() / (masks != IGNORE).sum()


def signed_distances(mask: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """mask (H, W), two or more classes in it -> phi (len(classes), H, W) float32, 0 where the mask is ignored.

    What is nearest of another class is nearest of the nearest other class: one transform per class does for both sides.
    """
    outside = np.stack([distance_transform_edt(mask != index).astype(np.float32) for index in classes])
    inside = mask == classes[:, None, None]
    nearest_other = np.where(inside, np.inf, outside).min(0)
    return np.where(inside, 0.5 - nearest_other, outside - 0.5) * (mask != IGNORE)

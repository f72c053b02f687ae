"""Mixup and cutmix of a batch, at most one of them at a time."""

import torch
from torch import Tensor, nn
from torchvision.transforms import v2


class Mix(nn.Module):
    """With `probability`, mixes each image of a batch with its neighbour, by mixup or by cutmix where both are on.

    (images (B, C, H, W), labels (B,)) -> (images, labels (B,)) untouched, or (images, targets (B, classes)), rows
    summing to one. Mixup: Zhang et al. 2018, arXiv:1710.09412; cutmix: Yun et al. 2019, arXiv:1905.04899. The share
    is drawn from Beta(alpha, alpha), once per batch; an alpha of 0 switches its kind off.
    """

    def __init__(
        self, num_classes: int, *, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0, probability: float = 1.0
    ):
        super().__init__()
        for key, value in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
            if value < 0:
                raise ValueError(f"task.{key} is {value}; it is 0 (off) or positive")
        if not 0 <= probability <= 1:
            raise ValueError(f"task.mix_probability is {probability}; it is in [0, 1]")
        self.kinds = []
        if mixup_alpha:
            self.kinds.append(v2.MixUp(alpha=mixup_alpha, num_classes=num_classes))
        if cutmix_alpha:
            self.kinds.append(v2.CutMix(alpha=cutmix_alpha, num_classes=num_classes))
        self.probability = probability

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not self.kinds or torch.rand(()).item() >= self.probability:
            return images, labels
        kind = self.kinds[int(torch.randint(len(self.kinds), ()))]
        return kind(images, labels)

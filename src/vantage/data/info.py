"""What a task needs to know about its data."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DataInfo:
    """Shape, classes and normalisation of a data set's images."""

    num_classes: int
    class_names: list[str]
    in_chans: int
    image_size: tuple[int, int]  # (height, width) of every batch
    mean: list[float]  # per channel, of images in 0..1
    std: list[float]
    palette: list[list[int]] | None = None  # RGB 0..255 per class, of data sets that have agreed on colours
    wraps: bool = False  # panoramas: a picture's left and right edge are neighbours
    scale: int = 1  # of super-resolution: how many times as large the target is

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (..., C, H, W) -> float32 (x / 255 - mean) / std."""
        mean, std = self._statistics(images)
        return images.float().sub_(mean * 255).mul_(1 / (std * 255))

    def denormalize(self, images: Tensor) -> Tensor:
        """float (..., C, H, W) as in a batch -> the picture, float32 in 0..1."""
        mean, std = self._statistics(images)
        return (images.float() * std + mean).clamp(0, 1)

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return mean, std

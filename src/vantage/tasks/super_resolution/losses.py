"""What super-resolution is trained by, terms of vantage.tasks.losses: pictures (B, C, H, W) of one unit -> scalar."""

import math

import torch
from torch import Tensor, nn


class L1(nn.Module):
    """mean |a - b|"""

    def __init__(self):  # nn.Module's own takes any keyword
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().mean()


class Charbonnier(nn.Module):
    """mean sqrt((a - b)^2 + epsilon^2): L1 with a round bottom (Lai et al., 2017, arXiv:1704.03915)."""

    def __init__(self, epsilon: float = 1e-3):
        super().__init__()
        if not 0 < epsilon < math.inf:
            raise ValueError(f"task.loss.terms.charbonnier.epsilon is {epsilon}; it must be above 0")
        self.epsilon = epsilon

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return torch.hypot(prediction - target, prediction.new_tensor(self.epsilon)).mean()


class FFT(nn.Module):
    """mean |Re F(a - b)| + |Im F(a - b)| over two, F the orthonormal 2-D Fourier transform of each channel.

    As MIMO-UNet has it (Cho et al., 2021, arXiv:2108.05054), whose transform is not normalised: there the weight 0.1
    grows with the picture.
    """

    def __init__(self):
        super().__init__()

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        spectrum = torch.fft.fft2((prediction - target).float(), norm="ortho")
        return torch.view_as_real(spectrum).abs().mean()

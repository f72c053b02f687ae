"""Channel-spatial attention (CSAM): a gate for every number of a map, from the 27 around it, channels being depth.

Paper: Single Image Super-Resolution via a Holistic Attention Network (Niu et al., 2020), arXiv:2008.08767
    G = sigmoid(conv3d(x)),  out = x + gamma G x
one 3x3x3 kernel and a bias over (channel, row, column), zeros outside; gamma, a number, starts at 0: the identity.
Shapes: (B, C, H, W) -> the same, any size. 29 parameters; 27 multiply-adds per number of the map.
Channels are an ordered axis to it: neighbours in number share a gate's window, though no layer before it arranges them.
While gamma is 0 the kernel and its bias get gradients that are zero (not None); they learn from the second step on.
"""

import torch
from torch import Tensor, nn


class CSAM(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        gates = self.conv(x.unsqueeze(1)).sigmoid().squeeze(1)  # (B, C, H, W)
        return x + x * (self.gamma * gates).to(x.dtype)


class CSAMConv(nn.Module):
    """The plug: `conv`, which keeps its weights, with the attention on what it gives."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        self.csam = CSAM()

    def forward(self, x: Tensor) -> Tensor:
        return self.csam(self.conv(x))

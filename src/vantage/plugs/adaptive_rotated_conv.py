"""Adaptive rotated convolution: each image chooses how far to turn n kernels and how much of each to take.

Paper: Adaptive Rotated Convolution for Rotated Object Detection (Pu et al., 2023), arXiv:2303.07820
    r = mean_places(ReLU(LN(dw3x3(x))))                                               (B, Cin)
    lambda = sigmoid(W_l drop(r) + b_l),  theta = softsign(W_t drop(r)) * 40 degrees  (B, n)
    y = (sum_i lambda_i R(theta_i) W_i) * x,  R(theta) W sampled at W's taps turned by theta
Shapes: (B, Cin, H, W) -> (B, Cout, H', W') as the convolution it replaces; weights (n, Cout, Cin, 3, 3).
Cost: the convolution's, and n * 9 * 9 * Cout * Cin per image for its kernel; n times its parameters.
As in the release, kernels are sampled bilinearly with the border's value outside them (align_corners=True), for any
angle by one formula; lambdas are not normalised.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AdaptiveRotatedConv(nn.Module):
    """Stands where `conv`, a 3x3 convolution of one group without bias, stood; kernels start anew (Kaiming, fan out).

    num_kernels    n
    max_angle_deg  bound of theta
    dropout        of the router, before both of its heads
    """

    def __init__(self, conv: nn.Conv2d, *, num_kernels: int = 4, max_angle_deg: float = 40.0, dropout: float = 0.2):
        super().__init__()
        if conv.kernel_size != (3, 3) or conv.groups != 1 or conv.bias is not None:
            raise ValueError(
                f"adaptive_rotated_conv: {conv} is no 3x3 convolution of one group without bias; use plug=none"
            )
        if num_kernels < 1:
            raise ValueError(f"adaptive_rotated_conv: num_kernels is {num_kernels}; use at least 1")
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.num_kernels = num_kernels
        self.max_angle_deg = max_angle_deg
        self.weight = nn.Parameter(torch.empty(num_kernels, conv.out_channels, conv.in_channels, 3, 3))
        for kernel in self.weight:
            nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu")
        self.depthwise = nn.Conv2d(
            conv.in_channels, conv.in_channels, 3, padding=1, groups=conv.in_channels, bias=False
        )
        self.norm = nn.LayerNorm(conv.in_channels)
        self.dropout = nn.Dropout(dropout)
        self.to_lambda = nn.Linear(conv.in_channels, num_kernels)
        self.to_theta = nn.Linear(conv.in_channels, num_kernels, bias=False)
        for module in (self.depthwise, self.to_lambda, self.to_theta):
            nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(self.to_lambda.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        with torch.autocast(x.device.type, enabled=False):
            kernels = self.kernels(*self.route(x.float()))
        # one group per image: (1, B * Cin, H, W) with (B * Cout, Cin, 3, 3)
        out = F.conv2d(
            x.reshape(1, -1, *x.shape[2:]),
            kernels.flatten(0, 1).to(x.dtype),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=batch,
        )
        return out.view(batch, self.out_channels, *out.shape[2:])

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, Cin, H, W) -> lambda and theta in radians, (B, n) each."""
        hidden = self.norm(self.depthwise(x).movedim(1, -1)).relu().mean((1, 2))  # (B, Cin)
        theta = F.softsign(self.to_theta(self.dropout(hidden))) * math.radians(self.max_angle_deg)
        return self.to_lambda(self.dropout(hidden)).sigmoid(), theta

    def kernels(self, weights: Tensor, theta: Tensor) -> Tensor:
        """lambda, theta (B, n) -> (B, Cout, Cin, 3, 3): sums come before the convolution, which is linear."""
        mixing = weights[..., None, None] * rotation(theta)  # (B, n, 9, 9)
        return torch.einsum("bnij,nocj->boci", mixing, self.weight.float().flatten(3)).unflatten(-1, (3, 3))

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, num_kernels={self.num_kernels}, stride={self.stride}"


def rotation(theta: Tensor) -> Tensor:
    """(...) -> (..., 9, 9): row i holds the weights, of sum 1, with which the taps make tap i of the turned kernel.

    Taps are row by row, at x and y in -1, 0, 1; tap i is read at R(theta) (x_i, y_i), held inside the kernel.
    """
    places = torch.tensor([-1.0, 0.0, 1.0], device=theta.device, dtype=theta.dtype)
    x, y = places.repeat(3), places.repeat_interleave(3)  # (9,)
    cos, sin = theta.cos()[..., None], theta.sin()[..., None]
    at_x, at_y = (x * cos - y * sin).clamp(-1, 1), (x * sin + y * cos).clamp(-1, 1)  # (..., 9)
    near_x, near_y = (1 - (at[..., None] - tap).abs() for at, tap in ((at_x, x), (at_y, y)))
    return near_x.clamp(min=0) * near_y.clamp(min=0)

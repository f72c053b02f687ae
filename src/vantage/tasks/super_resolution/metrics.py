"""PSNR and SSIM as super-resolution reports them: of bytes, without the border, usually of the luma; per picture.

    Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255                        (ITU-R BT.601, R, G, B and Y in 0..255)
    PSNR = 10 log10(255^2 / mean((a - b)^2))                                 dB; infinite for equal pictures
    SSIM = mean over windows of (2 m_a m_b + c1)(2 s_ab + c2) / ((m_a^2 + m_b^2 + c1)(s_a^2 + s_b^2 + c2))
with the means, variances and covariance of an 11x11 Gaussian window of deviation 1.5, only where it lies inside,
c1 = (0.01 255)^2, c2 = (0.03 255)^2 (Wang et al., 2004). Predictions are rounded to bytes first; Y is not rounded.
Luma over the full range, 0.299 R + 0.587 G + 0.114 B, reads 1.32 dB less; a border left in reads less or more. Greys
taken for Y, as tables of the time of SRCNN do, read 1.32 dB less as well; here Y is in 16..235 for greys too, as
in BasicSR. Set14 has one grey picture, so that its mean lies 0.094 dB above theirs.
"""

from typing import Literal

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F

Channel = Literal["y", "rgb"]

LUMA = (65.481, 128.553, 24.966)
WINDOW, DEVIATION = 11, 1.5


def to_bytes(pixels: Tensor) -> Tensor:
    """float pixels in 0..1 -> uint8, clamped and rounded, halves to the even neighbour as numpy's round does."""
    return (pixels.double() * 255).round_().clamp_(0, 255).to(torch.uint8)


def luma(picture: Tensor) -> Tensor:
    """RGB (3, H, W) or grey (1, H, W), in 0..255 -> Y (1, H, W), float64, in 16..235; grey is as R = G = B."""
    picture = picture.double()
    if len(picture) == 1:
        return 16 + picture * (sum(LUMA) / 255)
    weights = torch.tensor(LUMA, dtype=torch.float64, device=picture.device) / 255
    return 16 + torch.tensordot(weights, picture, dims=1)[None]


def compared(prediction: Tensor, target: Tensor, border: int, channel: Channel) -> tuple[Tensor, Tensor]:
    """What of two pictures uint8 (C, H, W) is compared: float64 (C or 1, H - 2 border, W - 2 border).

    Raises: ValueError if their sizes differ, which is never mended by resizing, or if nothing is left.
    """
    if prediction.shape != target.shape:
        shapes = [f"{tuple(one.shape)}" for one in (prediction, target)]
        raise ValueError(f"the prediction has shape {shapes[0]} and the target {shapes[1]}; they must be equal")
    if prediction.dtype != torch.uint8 or target.dtype != torch.uint8:
        raise ValueError(f"pictures of {prediction.dtype} and {target.dtype} are compared; both must be bytes (uint8)")
    height, width = prediction.shape[-2:]
    if min(height, width) - 2 * border < WINDOW:
        raise ValueError(
            f"a picture of {width}x{height} has no {WINDOW}x{WINDOW} window inside a border of {border} pixels; "
            "larger pictures are needed"
        )
    inside = slice(border, height - border), slice(border, width - border)
    pair = [one[:, inside[0], inside[1]] for one in (prediction, target)]
    return tuple(luma(one) if channel == "y" else one.double() for one in pair)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Of two pictures (C, H, W) in 0..255: a float64 scalar, infinite if they are equal."""
    return 10 * torch.log10(255**2 / (a - b).square().mean())


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Of two pictures (C, H, W) in 0..255, both sides at least 11: a float64 scalar, the mean over the channels."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b, aa, bb, ab = windowed(torch.stack([a, b, a * a, b * b, a * b]))
    var_a, var_b, cov = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def windowed(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> Gaussian means (N, C, H - 10, W - 10)"""
    offsets = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * DEVIATION**2))
    weights = weights / weights.sum()
    flat = maps.flatten(0, 1)[:, None]
    flat = F.conv2d(F.conv2d(flat, weights[None, None, :, None]), weights[None, None, None])
    return flat.view(*maps.shape[:2], *flat.shape[-2:])


class PictureMean(torchmetrics.Metric):
    """The mean over pictures of what `score` gives for one; each counts the same, however large it is.

    update(prediction, target): uint8 (C, H, W) both.
    border   pixels left out on every side: the scale, by convention
    channel  "y": luma, "rgb": all channels together
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    def __init__(self, *, border: int, channel: Channel = "y"):
        super().__init__()
        if channel not in ("y", "rgb"):
            raise ValueError(f"channel={channel!r}; use y or rgb")
        self.border, self.channel = border, channel
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pictures", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.total += self.score(*compared(prediction, target, self.border, self.channel)).to(self.total)
        self.pictures += 1

    def compute(self) -> Tensor:
        """NaN if there was no picture."""
        return self.total / self.pictures


class PSNR(PictureMean):
    """dB; infinite as soon as one picture is predicted to the byte."""

    def score(self, a: Tensor, b: Tensor) -> Tensor:
        return psnr(a, b)


class SSIM(PictureMean):
    def score(self, a: Tensor, b: Tensor) -> Tensor:
        return ssim(a, b)

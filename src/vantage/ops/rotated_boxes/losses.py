"""Losses of predicted boxes against targets, pair by pair: (N, 5), (N, 5) -> (N,), 0 where a prediction is right.

Exact IoU, and four distances of Gaussians: a box is a normal distribution with mean (cx, cy) and the covariance
R diag(w^2, h^2) R^T / 4 (ProbIoU: / 12). Gaussians also attract boxes that are apart; those of squares are circles,
which know no angle: their loss is 0 at any, with gradient 0.
With the angle between the boxes in closed form there is no matrix root and nothing cancels; computed in float64, sides
held in [1e-6, 1e7], so that values and gradients are finite for identical boxes, squares, slivers and sides near 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.ops.rotated_boxes.arguments import check_aligned, check_alike, check_boxes
from vantage.ops.rotated_boxes.iou import rotated_iou

SIDES = (1e-6, 1e7)
SMOOTH = 1e-12  # what roots add inside, so that their slope at 0 is finite


def rotated_iou_loss(
    pred: Tensor, target: Tensor, *, mode: str = "log", eps: float = 1e-6, backend: str = "auto"
) -> Tensor:
    """-log(max(IoU, eps)) ("log"), 1 - IoU ("linear") or 1 - IoU^2 ("square"), (N,).

    Boxes that are apart have no gradient, for the area in common is 0 around them.
    """
    check_pairs("rotated_iou_loss", pred, target)
    if mode not in ("log", "linear", "square"):
        raise ValueError(f"rotated_iou_loss: mode={mode!r} is unknown; use log, linear or square")
    iou = rotated_iou(pred, target, aligned=True, backend=backend)
    if mode == "log":
        return -iou.clamp(min=eps).log()
    return 1 - (iou if mode == "linear" else iou.square())


def gwd_loss(pred: Tensor, target: Tensor, *, tau: float = 1.0) -> Tensor:
    """Gaussian Wasserstein distance (Yang et al., 2021, arXiv:2101.11952), as its release normalises it:

    1 - 1 / (tau + log(1 + d / s)),   d^2 = |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^1/2 S2 S1^1/2)^1/2),
    s = 2 (det S1 det S2)^1/8, the scale of both boxes. tau = 1 makes it 0 for identical boxes. (N,)
    """
    check_pairs("gwd_loss", pred, target)
    g = Gaussians.of(pred, target, 4)
    a1, b1, a2, b2 = (variance.sqrt() for variance in (g.a1, g.b1, g.a2, g.b2))
    # tr(...)^1/2 = sqrt(p^2 - q); p less that root, without the difference of two large numbers
    p, q = a1 * a2 + b1 * b2, g.sin2 * (g.a1 - g.b1) * (g.a2 - g.b2)
    shape = (a1 - a2).square() + (b1 - b2).square() + 2 * q / (p + (p.square() - q).clamp(min=SIDES[0] ** 4).sqrt())
    scale = 2 * (a1 * b1 * a2 * b2) ** 0.25
    distance = smooth_root((g.x.square() + g.y.square() + shape.clamp(min=0)) / scale.square())
    return (1 - 1 / (tau + distance.log1p())).to(pred.dtype)


def kld_loss(pred: Tensor, target: Tensor, *, tau: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the prediction from the target (Yang et al., 2021, arXiv:2106.01883):

    1 - 1 / (tau + log(1 + D)),   D = ((m1 - m2)^T S2^-1 (m1 - m2) + tr(S2^-1 S1) + log(det S2 / det S1)) / 2 - 1. (N,)
    """
    check_pairs("kld_loss", pred, target)
    g = Gaussians.of(pred, target, 4)
    trace = g.cos2 * (g.a1 / g.a2 + g.b1 / g.b2) + g.sin2 * (g.a1 / g.b2 + g.b1 / g.a2)
    logarithm = g.a2.log() + g.b2.log() - g.a1.log() - g.b1.log()
    divergence = (g.mahalanobis + trace + logarithm) / 2 - 1
    return (1 - 1 / (tau + divergence.clamp(min=0).log1p())).to(pred.dtype)


def kfiou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """KFIoU (Yang et al., 2022, arXiv:2201.12558) with the centre's term of KLD:

    log(1 + (m1 - m2)^T S2^-1 (m1 - m2)) + exp(1 - 3 KFIoU) - 1,   KFIoU = V / (V1 + V2 - V),
    V the area of the box of S1 (S1 + S2)^-1 S2, at most half of either. KFIoU is at most 1/3: three times that gives
    identical boxes the loss 0, which the release leaves at exp(2/3) - 1. (N,)
    """
    check_pairs("kfiou_loss", pred, target)
    g = Gaussians.of(pred, target, 4)
    area1, area2 = 4 * (g.a1 * g.b1).sqrt(), 4 * (g.a2 * g.b2).sqrt()
    common = area1 * area2 / (4 * g.determinant_of_sum.sqrt())
    overlap = common / (area1 + area2 - common)
    return (g.mahalanobis.log1p() + torch.expm1((1 - 3 * overlap).clamp(min=0))).to(pred.dtype)


def probiou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Hellinger distance (Llerena et al., 2021, arXiv:2106.06072): 1 - ProbIoU = sqrt(1 - exp(-B)),

    B = (m1 - m2)^T (S1 + S2)^-1 (m1 - m2) / 4 + log(det(S1 + S2) / (4 sqrt(det S1 det S2))) / 2. (N,)
    """
    check_pairs("probiou_loss", pred, target)
    g = Gaussians.of(pred, target, 12)
    xx = g.a2 + g.a1 * g.cos2 + g.b1 * g.sin2  # S1 + S2 in the target's frame
    yy = g.b2 + g.a1 * g.sin2 + g.b1 * g.cos2
    xy = (g.a1 - g.b1) * g.cos * g.sin
    apart = (yy * g.x.square() - 2 * xy * g.x * g.y + xx * g.y.square()) / g.determinant_of_sum
    logarithm = (g.determinant_of_sum / 4).log() - (g.a1.log() + g.b1.log() + g.a2.log() + g.b2.log()) / 2
    return smooth_root(-torch.expm1(-(apart / 4 + logarithm / 2).clamp(min=0))).to(pred.dtype)


@dataclass
class Gaussians:  # no NamedTuple: Dynamo of torch 2.10 reads no properties of one
    """Prediction 1 and target 2 in the frame of the target, float64, (N,) each."""

    x: Tensor  # mean of 1
    y: Tensor
    cos: Tensor  # of the angle from 2 to 1
    sin: Tensor
    a1: Tensor  # variances along the own w and h
    b1: Tensor
    a2: Tensor
    b2: Tensor

    @classmethod
    def of(cls, pred: Tensor, target: Tensor, divisor: float) -> "Gaussians":
        x1, y1, w1, h1, angle1 = pred.double().unbind(1)
        x2, y2, w2, h2, angle2 = target.double().unbind(1)
        dx, dy, cos, sin = x1 - x2, y1 - y2, angle2.cos(), angle2.sin()
        turn = angle1 - angle2
        variances = (side.clamp(*SIDES).square() / divisor for side in (w1, h1, w2, h2))
        return cls(cos * dx + sin * dy, cos * dy - sin * dx, turn.cos(), turn.sin(), *variances)

    @property
    def cos2(self) -> Tensor:
        return self.cos.square()

    @property
    def sin2(self) -> Tensor:
        return self.sin.square()

    @property
    def mahalanobis(self) -> Tensor:
        """Squared distance of the means in standard deviations of the target."""
        return self.x.square() / self.a2 + self.y.square() / self.b2

    @property
    def determinant_of_sum(self) -> Tensor:
        """det(S1 + S2): products of sides only, so that nothing cancels."""
        straight = self.a1 * self.b2 + self.b1 * self.a2
        crossed = self.a1 * self.a2 + self.b1 * self.b2
        return self.a1 * self.b1 + self.a2 * self.b2 + self.cos2 * straight + self.sin2 * crossed


def smooth_root(value: Tensor) -> Tensor:
    """sqrt(value) to 1e-6, with a finite slope at 0, where it is 0."""
    return value / ((value + SMOOTH).sqrt() + SMOOTH**0.5)


def check_pairs(function: str, pred: Tensor, target: Tensor) -> None:
    check_boxes(function, "pred", pred)
    check_boxes(function, "target", target)
    check_alike(function, "pred", pred, "target", target)
    check_aligned(function, "pred", pred, "target", target)

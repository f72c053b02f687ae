"""Losses of rotated boxes against matrices and distributions of PyTorch, and finite where others are not."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import MultivariateNormal, kl_divergence

from vantage.ops.rotated_boxes import (
    gwd_loss,
    kfiou_loss,
    kld_loss,
    probiou_loss,
    rotated_iou,
    rotated_iou_loss,
)

from .cases import both_backends, boxes_like, random_boxes

GAUSSIAN = [gwd_loss, kld_loss, kfiou_loss, probiou_loss]
LOSSES = [*GAUSSIAN, rotated_iou_loss]


def pairs(count: int = 50, dtype=torch.float64):
    pred = random_boxes(count, dtype)
    target = random_boxes(count, dtype)
    target[:, :2] = pred[:, :2] + torch.randn(count, 2) * 6
    return pred, target


def gaussian(boxes, divisor):
    """Mean (N, 2) and covariance (N, 2, 2) by matrix products."""
    cos, sin = boxes[:, 4].cos(), boxes[:, 4].sin()
    turn = torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)
    return boxes[:, :2], turn @ torch.diag_embed(boxes[:, 2:4].square() / divisor) @ turn.mT


def matrix_root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag_embed(values.clamp(min=0).sqrt()) @ vectors.mT


def trace(matrix):
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def test_kld_is_the_divergence_of_distributions():
    pred, target = pairs()
    divergence = kl_divergence(*(MultivariateNormal(*gaussian(boxes, 4)) for boxes in (pred, target)))
    torch.testing.assert_close(kld_loss(pred, target), 1 - 1 / (1 + divergence.log1p()))
    torch.testing.assert_close(kld_loss(pred, target, tau=2.0), 1 - 1 / (2 + divergence.log1p()))


def test_gwd_by_matrix_roots():
    pred, target = pairs()
    (m1, s1), (m2, s2) = gaussian(pred, 4), gaussian(target, 4)
    root = matrix_root(s1)
    squared = (m1 - m2).square().sum(-1) + trace(s1 + s2 - 2 * matrix_root(root @ s2 @ root))
    scale = 2 * (torch.linalg.det(s1) * torch.linalg.det(s2)) ** 0.125
    wanted = 1 - 1 / (1 + (squared.sqrt() / scale).log1p())
    torch.testing.assert_close(gwd_loss(pred, target), wanted, atol=1e-5, rtol=1e-5)


def test_probiou_is_the_hellinger_distance():
    pred, target = pairs()
    (m1, s1), (m2, s2) = gaussian(pred, 12), gaussian(target, 12)
    mean, apart = (s1 + s2) / 2, (m1 - m2).unsqueeze(-1)
    quadratic = (apart.mT @ torch.linalg.inv(mean) @ apart).flatten() / 8
    logarithm = torch.logdet(mean) - (torch.logdet(s1) + torch.logdet(s2)) / 2
    wanted = (1 - (-quadratic - logarithm / 2).exp()).sqrt()
    torch.testing.assert_close(probiou_loss(pred, target), wanted, atol=2e-6, rtol=1e-5)


def test_kfiou_by_a_kalman_filter():
    pred, target = pairs()
    (m1, s1), (m2, s2) = gaussian(pred, 4), gaussian(target, 4)
    gain = s1 @ torch.linalg.inv(s1 + s2)
    area, area1, area2 = (4 * torch.linalg.det(s).sqrt() for s in (s1 - gain @ s1, s1, s2))
    overlap = area / (area1 + area2 - area)
    assert (overlap <= 1 / 3).all()
    apart = (m1 - m2).unsqueeze(-1)
    centre = (apart.mT @ torch.linalg.inv(s2) @ apart).flatten().log1p()
    torch.testing.assert_close(kfiou_loss(pred, target), centre + (1 - 3 * overlap).exp() - 1)


@both_backends
def test_rotated_iou_loss_of_the_iou(backend):
    pred, target = pairs()
    iou = rotated_iou(pred, target, aligned=True, backend="reference")
    for mode, wanted in (("log", -iou.clamp(min=1e-6).log()), ("linear", 1 - iou), ("square", 1 - iou**2)):
        torch.testing.assert_close(rotated_iou_loss(pred, target, mode=mode, backend=backend), wanted)


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_for_right_boxes_and_more_for_worse_ones(loss):
    boxes = random_boxes(100)
    boxes[:, 2] = boxes[:, 3] * 3
    zero = loss(boxes, boxes)
    assert zero.shape == (100,)
    assert zero.dtype == torch.float32
    assert zero.abs().max() < 1e-5
    before = zero
    for amount in (0.02, 0.1, 0.2):  # of the sides, and half a radian of 1
        worse = boxes + amount * torch.stack((boxes[:, 3], boxes[:, 3], boxes[:, 2], boxes[:, 3], torch.ones(100)), 1)
        after = loss(worse, boxes)
        assert (after > before).all()
        before = after


@pytest.mark.parametrize("loss", LOSSES)
def test_words_for_the_same_rectangle_cost_the_same(loss):
    pred, target = pairs()
    wanted = loss(pred, target)
    half_turn = torch.tensor([0, 0, 0, 0, math.pi], dtype=torch.float64)
    torch.testing.assert_close(loss(pred[:, [0, 1, 3, 2, 4]] + half_turn / 2, target), wanted)
    torch.testing.assert_close(loss(pred, target + half_turn), wanted)


@pytest.mark.parametrize("loss", [gwd_loss, kfiou_loss, probiou_loss, kld_loss])
def test_independent_of_the_unit(loss):
    pred, target = pairs()
    scale = torch.tensor([7, 7, 7, 7, 1], dtype=torch.float64)
    torch.testing.assert_close(loss(pred * scale, target * scale), loss(pred, target))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss):
    pred, target = (boxes.requires_grad_() for boxes in pairs(12))
    assert gradcheck(loss, (pred, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_finite_where_boxes_degenerate(loss, dtype):
    """Identical, squares, slivers, sides of 0 and below, far away, huge; also each alone."""
    sides = [-1.0, 0.0, 1e-8, 1e-3, 1.0, 30.0, 1e6]
    rows = [[x, 0, w, h, angle] for x in (0, 15, 1e5) for w in sides for h in sides for angle in (0, 0.7, math.pi / 2)]
    boxes = boxes_like(rows, dtype)
    targets = boxes_like([[0, 0, 30, 30, 0], [0, 0, 30, 1e-3, 0.7], [0, 0, 0, 0, 0], [0, 0, 1e6, 1, 0]], dtype)
    pred = torch.cat((boxes.repeat_interleave(len(targets), 0), boxes)).requires_grad_()
    target = torch.cat((targets.repeat(len(boxes), 1), boxes)).requires_grad_()
    values = loss(pred, target)
    assert values.isfinite().all()
    assert (values >= -1e-6).all()
    for grad in torch.autograd.grad(values.sum(), (pred, target)):
        assert grad.isfinite().all()


@pytest.mark.parametrize("loss", GAUSSIAN)
def test_gaussians_of_squares_know_no_angle(loss):
    square = boxes_like([[3, 3, 8, 8, 0.0]])
    turned = boxes_like([[3, 3, 8, 8, 0.6]]).requires_grad_()
    value = loss(turned, square)
    assert value.abs().item() < 1e-5
    (grad,) = torch.autograd.grad(value.sum(), turned)
    assert grad[0, 4].abs() < 1e-5
    assert rotated_iou_loss(turned, square).item() > 0.1


@pytest.mark.parametrize("loss", LOSSES)
def test_descent_finds_the_target(loss):
    target = boxes_like([[10, 10, 20, 6, 0.4]])
    pred = boxes_like([[13, 8, 14, 9, 0.0]]).requires_grad_()
    optimizer = torch.optim.Adam([pred], 0.1)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        loss(pred, target).sum().backward()
        optimizer.step()
    assert rotated_iou(pred.detach(), target).item() > 0.9


@pytest.mark.parametrize("loss", LOSSES)
def test_empty_autocast_and_refusals(loss):
    none = torch.empty(0, 5, requires_grad=True)
    loss(none, none.detach()).sum().backward()
    assert none.grad.shape == (0, 5)
    pred, target = pairs(5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        within = loss(pred, target)
    assert torch.equal(within, loss(pred, target))
    name = loss.__name__
    with pytest.raises(ValueError, match=rf"{name}: pred has 5 boxes and target 4; aligned boxes come in pairs"):
        loss(pred, target[:4])
    with pytest.raises(ValueError, match=rf"{name}: pred is torch.bfloat16, which rounds pixels"):
        loss(pred.bfloat16(), target)


def test_unknown_mode():
    with pytest.raises(ValueError, match="rotated_iou_loss: mode='giou' is unknown; use log, linear or square"):
        rotated_iou_loss(*pairs(2), mode="giou")

"""Losses against torchvision and the papers' formulas."""

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from vantage.tasks.rotated_detection.losses import CircularSmoothLabel, check_box_loss, focal_loss, smooth_l1


def test_focal_loss_equals_torchvisions():
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * 4
    targets = (torch.rand(40, 6, generator=torch.Generator().manual_seed(1)) < 0.2).float()
    expected = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0, reduction="none")
    torch.testing.assert_close(focal_loss(logits, targets), expected)


def test_smooth_l1_is_summed_over_the_numbers_of_a_box():
    predicted, targets = torch.tensor([[0.0, 2.0], [0.5, 0.0]]), torch.zeros(2, 2)
    torch.testing.assert_close(smooth_l1(predicted, targets, beta=1.0), torch.tensor([1.5, 0.125]))
    torch.testing.assert_close(smooth_l1(predicted, targets, beta=0.0), torch.tensor([2.0, 0.5]))


def test_circular_labels_wrap_around_and_fall_off_like_a_gaussian():
    csl = CircularSmoothLabel(bins=180, radius=6)
    labels = csl.encode(torch.tensor([-math.pi / 2, 0.0, math.pi / 2 - 1e-4]))
    assert labels.argmax(1).tolist() == [0, 90, 0]
    assert labels[1, 93].item() == pytest.approx(math.exp(-9 / 72))
    assert labels[1, 96].item() == pytest.approx(math.exp(-0.5))
    assert labels[1, 97].item() == 0
    torch.testing.assert_close(labels[0], labels[0].flip(0).roll(1))  # symmetric around its own bin
    assert labels[0, 179].item() == pytest.approx(math.exp(-1 / 72))


def test_angles_survive_circular_labels_to_half_a_bin():
    csl = CircularSmoothLabel()
    angles = (torch.rand(500, generator=torch.Generator().manual_seed(0)) - 0.5) * math.pi
    turned = csl.decode(csl.encode(angles)) - angles
    assert (2 * turned).sin().abs().max() <= math.sin(math.pi / 180) + 1e-5


def test_an_unknown_distance_is_refused():
    with pytest.raises(ValueError, match=r"task.detector.box_loss is 'giou'; use one of rotated_iou, gwd, kld"):
        check_box_loss("giou")

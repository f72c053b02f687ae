"""What holds for every detector: trains on anything without NaN, ignores difficult boxes, learns."""

import math

import pytest
import torch

from vantage.tasks.rotated_detection.metrics import RotatedMeanAveragePrecision

from .scenes import DETECTORS, Pyramid, make_detector, paint, random_target, target

names = pytest.mark.parametrize("name", DETECTORS)
LOSSES = ("rotated_iou", "gwd", "kld", "kfiou", "probiou", "smooth_l1")


def step(detector, targets, size=64, seed=0):
    torch.manual_seed(seed)
    backbone = Pyramid()
    images = torch.randn(len(targets), 3, size, size)
    losses = detector.loss(detector(backbone.features(images)), targets)
    sum(losses.values()).backward()
    return losses


def assert_sound(detector, losses):
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    for key, parameter in detector.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient: distributed training would stop"
        assert parameter.grad.isfinite().all(), key


@names
@pytest.mark.parametrize("box_loss", LOSSES)
def test_every_distance_trains(name, box_loss):
    detector = make_detector(name, box_loss=box_loss)
    losses = step(detector, [random_target(0, 8), random_target(1, 3)])
    assert_sound(detector, losses)
    assert losses["box"] > 0


@pytest.mark.parametrize(
    ("name", "angle"), [("fcos", "radian"), ("fcos", "double_angle"), ("fcos", "csl"), ("retinanet", "csl")]
)
@pytest.mark.parametrize("box_loss", ["rotated_iou", "smooth_l1"])
def test_every_kind_of_angle_trains(name, angle, box_loss):
    detector = make_detector(name, angle=angle, box_loss=box_loss)
    losses = step(detector, [random_target(0, 8)])
    assert_sound(detector, losses)
    assert ("angle" in losses) == (angle == "csl")


@names
@pytest.mark.parametrize(
    "targets",
    [
        [target([]), target([])],
        [random_target(0, 5), target([])],
        [random_target(0, 3000)],
        [target([[-40.0, -40, 20, 10, 0.3], [63, 10, 60, 20, 1.0], [500, 20, 30, 10, 0]])],
        [target([[30.0, 30, 20, 10, 0.3], [10, 10, 8, 4, 0]], difficult=[1, 1])],
        [target([[30.0, 30, 20, 10, 0.3]] * 40)],
        [target([[30.0, 30, 1e-3, 1e-3, 0.3], [30, 30, 60, 1e-2, 0.7], [32, 32, 4000, 3000, 0.1]])],
    ],
    ids=["empty", "one_empty", "thousands", "outside", "difficult", "identical", "degenerate"],
)
def test_hard_images_train_without_nan(name, targets):
    detector = make_detector(name)
    assert_sound(detector, step(detector, targets))


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_difficult_boxes_are_neither_learned_nor_background(name):
    """A difficult box adds nothing to learn, and what would be background without it counts less."""
    one, other = [20.0, 20, 24, 12, 0.4], [48.0, 48, 20, 12, 1.0]
    torch.manual_seed(0)
    detector, backbone = make_detector(name), Pyramid()
    maps = backbone.features(torch.randn(1, 3, 64, 64))
    alone, ignored, learned = (
        detector.loss(detector(maps), [each])
        for each in (target([one]), target([one, other], [0, 1], [0, 1]), target([one, other], [0, 1]))
    )
    assert ignored["box"] == alone["box"]
    assert learned["box"] != alone["box"]
    assert ignored["class"] < alone["class"]


def test_difficult_boxes_are_not_sampled():
    """With difficult boxes only, neither the RPN nor the head has a positive or learns from places on them."""
    torch.manual_seed(0)
    detector = make_detector("oriented_rcnn", rpn_samples=10**6, head_samples=10**6)
    outputs = detector(Pyramid().features(torch.randn(1, 3, 64, 64)))
    boxes = [[32.0, 32, 60, 56, 0.1]]
    ignored, empty = (detector.loss(outputs, [each]) for each in (target(boxes, difficult=[1]), target([])))
    assert ignored["rpn_box"] == empty["rpn_box"] == 0
    assert ignored["box"] == empty["box"] == 0
    assert ignored["rpn_class"] != empty["rpn_class"]


@names
def test_detections_are_sorted_canonical_and_few(name):
    detector = make_detector(name, max_detections=7, score_threshold=0.0)
    torch.manual_seed(0)
    outputs = detector(Pyramid().features(torch.randn(3, 3, 64, 80)))
    for found in detector.detect(outputs):
        assert 0 < len(found) <= 7
        assert (found.scores.diff() <= 0).all()
        assert found.boxes.isfinite().all()
        assert (found.boxes[:, 2] >= found.boxes[:, 3]).all()
        assert (found.boxes[:, 4].abs() <= math.pi / 2 + 1e-6).all()
        assert set(found.labels.tolist()) <= {0, 1}
    high = make_detector(name, score_threshold=0.999)
    assert [len(found) for found in high.detect(high(Pyramid().features(torch.randn(2, 3, 64, 64))))] == [0, 0]


@names
@pytest.mark.parametrize("seed", [0])
def test_a_few_bars_are_learned_by_heart(name, seed):
    """Four images, some seconds: every object is found, and nothing else."""
    torch.manual_seed(seed)
    targets = [
        target([[18.0, 18, 26, 9, 0.6], [46, 44, 22, 10, -1.2]], [0, 1]),
        target([[32.0, 30, 30, 10, 1.4]], [1]),
        target([[20.0, 44, 24, 9, -0.5], [44, 18, 20, 11, 0.1]], [0, 0]),
        target([]),
    ]
    images = torch.stack([paint(one) for one in targets])
    detector, backbone = make_detector(name), Pyramid()
    parameters = [*detector.parameters(), *backbone.parameters()]
    steps = 250
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(steps):
        loss = sum(detector.loss(detector(backbone.features(images)), targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
    metric = RotatedMeanAveragePrecision(2)
    metric.update([found.as_dict() for found in detector.detect(detector(backbone.features(images)))], targets)
    assert metric.compute()["mAP50"] > 0.99

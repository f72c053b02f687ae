"""FCOS: assignment against a plain loop, decoding against its own targets."""

import math

import pytest
import torch

from vantage.tasks.rotated_detection.assign import BACKGROUND, IGNORED
from vantage.tasks.rotated_detection.fcos import Outputs, assign, centerness_of, decode, distances

from .scenes import make_detector, random_target, target

SIZES, STRIDES = [(16, 16), (8, 8), (4, 4)], [4, 8, 16]


def by_loops(targets, radius=1.5):
    """The rule, point by point and box by box, in plain numbers."""
    edges = [0.0, 32.0, 64.0, math.inf]
    result, start = [], 0
    for one in targets:
        for level, ((height, width), stride) in enumerate(zip(SIZES, STRIDES)):
            for row in range(height):
                for column in range(width):
                    x, y = (column + 0.5) * stride, (row + 0.5) * stride
                    best, area, ignored = BACKGROUND, math.inf, False
                    for index, (box, difficult) in enumerate(zip(one["boxes"].tolist(), one["difficult"].tolist())):
                        cx, cy, w, h, angle = box
                        u = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
                        v = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
                        if abs(u) >= w / 2 or abs(v) >= h / 2:
                            continue
                        if difficult:
                            ignored = True
                            continue
                        farthest = max(w / 2 + abs(u), h / 2 + abs(v))
                        near = max(abs(u), abs(v)) < radius * stride
                        if near and edges[level] < farthest <= edges[level + 1] and w * h < area:
                            best, area = start + index, w * h
                    result.append(IGNORED if best == BACKGROUND and ignored else best)
        start += len(one["boxes"])
    return torch.tensor(result).view(len(targets), -1)


@pytest.mark.parametrize("seed", range(4))
def test_points_belong_to_the_boxes_the_rule_says(seed):
    targets = [random_target(seed, 12), target([]), random_target(seed + 10, 30)]
    found = assign(SIZES, STRIDES, targets, radius=1.5)
    expected = by_loops(targets)
    assert (found == expected).float().mean() > 0.999  # a border may round to the other side
    assert (expected >= 0).sum() > 20
    assert (expected == IGNORED).sum() > 5


def test_the_largest_radius_reaches_every_cell_around():
    targets = [random_target(3, 20)]
    for radius in (0.5, 1.0, 2.5):
        assert (assign(SIZES, STRIDES, targets, radius=radius) == by_loops(targets, radius)).float().mean() > 0.999


def test_distances_are_undone_by_decoding():
    boxes = random_target(0, 50)["boxes"]
    points = torch.rand(50, 2) * 64
    torch.testing.assert_close(decode(points, distances(points, boxes), boxes[:, 4]), boxes, atol=1e-3, rtol=1e-4)


def test_centerness_is_one_in_the_middle_and_zero_at_a_side():
    sides = torch.tensor([[5.0, 3, 5, 3], [0, 3, 10, 3], [2, 4, 8, 4]])
    torch.testing.assert_close(centerness_of(sides), torch.tensor([1.0, 0.0, 0.5]))


def perfect_outputs(detector, targets):
    """What a perfect network would say, from the assignment and its targets."""
    assigned = assign(SIZES, STRIDES, targets, radius=1.5)
    boxes, labels = (torch.cat([one[name] for one in targets]) for name in ("boxes", "labels"))
    outputs = Outputs([], [], [], [])
    offset = 0
    for (height, width), stride in zip(SIZES, STRIDES):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        points = (torch.stack([columns, rows], -1).view(-1, 2) + 0.5) * stride
        index = assigned[:, offset : offset + height * width]
        offset += height * width
        own = boxes[index.clamp(min=0)]
        sides = distances(points.expand(len(targets), -1, -1), own).clamp(min=0)
        logits = torch.full((*index.shape, detector.num_classes), -12.0)
        logits[index >= 0] = logits[index >= 0].scatter(1, labels[index[index >= 0]][:, None], 12.0)
        if detector.angle == "double_angle":
            angles = torch.stack([(2 * own[..., 4]).cos(), (2 * own[..., 4]).sin()], -1)
        elif detector.angle == "csl":
            angles = detector.csl.encode(own[..., 4].flatten()).view(*index.shape, -1) * 20 - 10
        else:
            angles = own[..., 4:]
        center = centerness_of(sides).clamp(1e-4, 1 - 1e-4).logit()[..., None]
        for level, rows_of_level in zip(outputs, (logits, sides, angles, center)):
            level.append(rows_of_level.transpose(1, 2).reshape(len(targets), -1, height, width))
    return outputs


@pytest.mark.parametrize("angle", ["double_angle", "radian", "csl"])
def test_perfect_outputs_are_the_ground_truths(angle):
    detector = make_detector("fcos", angle=angle)
    targets = [
        target([[20.0, 20, 24, 8, 0.5], [44, 44, 20, 10, -1.3]], [1, 0]),
        target([]),
        target([[30.0, 34, 50, 30, 1.0]]),
    ]
    outputs = perfect_outputs(detector, targets)
    for found, one in zip(detector.detect(outputs), targets):
        assert sorted(found.labels.tolist()) == sorted(one["labels"].tolist())
        order, own = found.labels.argsort(), one["labels"].argsort()
        atol = 0.04 if angle == "csl" else 1e-3
        torch.testing.assert_close(found.boxes[order], one["boxes"][own], atol=atol, rtol=1e-3)
    losses = detector.loss(outputs, targets)
    assert losses["class"] < 1e-3
    assert losses["box"] < 1e-2


def test_an_unknown_angle_is_refused():
    with pytest.raises(ValueError, match=r"task.detector.angle is 'sine'; use one of radian, double_angle, csl"):
        make_detector("fcos", angle="sine")

"""Small parts for the detectors' tests: a backbone of three convolutions, and bars on a dark ground."""

import math

import torch
from torch import nn

from vantage.ops.rotated_boxes import points_in_rotated_boxes
from vantage.tasks.rotated_detection.fcos import RotatedFCOS
from vantage.tasks.rotated_detection.oriented_rcnn import OrientedRCNN
from vantage.tasks.rotated_detection.retinanet import RotatedRetinaNet

DETECTORS = {
    "fcos": (RotatedFCOS, {"width": 16, "num_convs": 1}),
    "retinanet": (RotatedRetinaNet, {"width": 16, "num_convs": 1}),
    "oriented_rcnn": (
        OrientedRCNN,
        {"width": 16, "head_width": 32, "proposals": 50, "head_samples": 32, "anchor_scale": 4.0},
    ),
}


class Pyramid(nn.Module):
    """Maps of strides 4, 8 and 16; takes what a task gives a backbone."""

    channels, strides = [16, 16, 16], [4, 8, 16]

    def __init__(self, num_classes: int = 0, in_chans: int = 3, img_size: tuple[int, int] | None = None):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 16, 5, stride=4, padding=2), nn.ReLU())
        self.down = nn.ModuleList(nn.Sequential(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU()) for _ in range(2))

    def features(self, images):
        maps = [self.stem(images)]
        for layer in self.down:
            maps.append(layer(maps[-1]))
        return maps

    def freeze_head(self):
        pass

    def installed(self):
        return []


def make_detector(name: str, num_classes: int = 2, **options):
    kind, small = DETECTORS[name]
    given = {"strides": (4, 8, 16), **small, **options}
    return kind(channels=Pyramid.channels, backbone_strides=Pyramid.strides, num_classes=num_classes, **given)


def target(boxes, labels=None, difficult=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 5) if not torch.is_tensor(boxes) else boxes
    labels = torch.zeros(len(boxes)) if labels is None else torch.as_tensor(labels)
    difficult = torch.zeros(len(boxes)) if difficult is None else torch.as_tensor(difficult)
    return {"boxes": boxes, "labels": labels.long(), "difficult": difficult.bool()}


def random_target(seed: int, count: int, size: int = 64, num_classes: int = 2):
    """Boxes of any angle, some partly or wholly outside, some difficult."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    sides = (4 + rand(count, 2) * 36).sort(descending=True).values
    boxes = torch.cat([rand(count, 2) * (size + 40) - 20, sides, (rand(count, 1) - 0.5) * math.pi], 1)
    return target(boxes, (rand(count) * num_classes).long(), rand(count) < 0.2)


def paint(sample: dict, size: int = 64) -> torch.Tensor:
    """(3, size, size): each box filled with a colour of its class."""
    places = torch.arange(size) + 0.5
    points = torch.stack([places.expand(size, -1), places[:, None].expand(-1, size)], -1).view(-1, 2)
    image = torch.zeros(3, size * size)
    for box, label in zip(sample["boxes"], sample["labels"]):
        inside = points_in_rotated_boxes(points, box[None])[:, 0]
        image[:, inside] = torch.tensor([[1.0], [0.2], [1.0]]) if label else torch.tensor([[0.2], [1.0], [1.0]])
    return image.view(3, size, size)

"""Rotated FCOS: every point inside a box regresses the distances to its four sides and its angle; no anchors.

Paper: FCOS: Fully Convolutional One-Stage Object Detection (Tian et al., 2019), arXiv:1904.01355
    box(p; l, t, r, b, angle): w = l + r, h = t + b, centre = p + R(angle) ((r - l) / 2, (b - t) / 2)
    positive: p inside the box, less than 1.5 strides from its centre along both of its axes, and the farthest side
    within the level's range; of several boxes the smallest wins
    centerness = sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)),  score = sqrt(p_class * p_centerness)
    loss = focal(class) + sum(centerness * distance(boxes)) / sum(centerness) + BCE(centerness)
Rotated as in mmrotate: distances along the box's own axes, in units of the stride, centerness on the regression branch.
Departs from it: a level's range ends at 8 strides, so that levels may start at stride 4; the default angle is
predicted as (cos 2a, sin 2a), which has no jump at the ends of its range (`angle="radian"` is mmrotate's); distances
start at one stride instead of none, where no gradient passes the clamp.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vantage.ops.rotated_boxes import canonical, points_in_rotated_boxes
from vantage.tasks.distributed import mean_over_processes
from vantage.tasks.rotated_detection.assign import BACKGROUND, IGNORED
from vantage.tasks.rotated_detection.coders import wrap
from vantage.tasks.rotated_detection.fpn import FPN
from vantage.tasks.rotated_detection.head import (
    as_rows,
    as_sizes,
    grid_points,
    initialise,
    ranges_of,
    start_at_prior,
    tower,
)
from vantage.tasks.rotated_detection.losses import (
    DISTANCES,
    BoxLossName,
    CircularSmoothLabel,
    check_box_loss,
    focal_loss,
    smooth_l1,
)
from vantage.tasks.rotated_detection.postprocess import Detections, Postprocess

AngleName = Literal["radian", "double_angle", "csl"]


class Outputs(NamedTuple):
    """Per level (B, K, H, W): class logits, distances to 4 sides in pixels, the angle's numbers, 1 of centerness."""

    logits: list[Tensor]
    sides: list[Tensor]
    angles: list[Tensor]
    centerness: list[Tensor]


class RotatedFCOS(nn.Module):
    """forward(maps of the backbone) -> Outputs; loss(outputs, targets) and detect(outputs) use them.

    strides       of the pyramid's levels, finest first
    width         channels of the pyramid and the towers, of `num_convs` convolutions each
    dyhead_blocks blocks of Dynamic Head after the pyramid
    box_loss      distance between boxes: rotated_iou (-log IoU), gwd, kld, kfiou, probiou, or smooth_l1 of the numbers
    angle         how it is predicted: double_angle (cos 2a, sin 2a), radian, or csl (circular smooth label)
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        backbone_strides: Sequence[int],
        num_classes: int,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        width: int = 256,
        dyhead_blocks: int = 0,
        num_convs: int = 4,
        box_loss: BoxLossName = "rotated_iou",
        angle: AngleName = "double_angle",
        center_radius: float = 1.5,
        box_weight: float = 1.0,
        angle_weight: float = 0.2,
        score_threshold: float = 0.05,
        top_k: int = 2000,
        nms_threshold: float = 0.1,
        max_detections: int = 2000,
    ):
        super().__init__()
        check_box_loss(box_loss)
        if angle not in get_args(AngleName):
            raise ValueError(f"task.detector.angle is {angle!r}; use one of {', '.join(get_args(AngleName))}")
        self.num_classes = num_classes
        self.strides = list(strides)
        self.box_loss = box_loss
        self.angle = angle
        self.center_radius = center_radius
        self.box_weight = box_weight
        self.angle_weight = angle_weight
        self.csl = CircularSmoothLabel()
        self.postprocess = Postprocess(score_threshold, top_k, nms_threshold, max_detections)
        self.neck = FPN(
            channels,
            backbone_strides,
            strides=strides,
            out_channels=width,
            extra_from="level",
            dyhead_blocks=dyhead_blocks,
        )
        self.class_tower = tower(width, num_convs, norm=True)
        self.box_tower = tower(width, num_convs, norm=True)
        self.classifier = nn.Conv2d(width, num_classes, 3, padding=1)
        self.to_sides = nn.Conv2d(width, 4, 3, padding=1)
        self.to_angle = nn.Conv2d(width, self.angle_numbers, 3, padding=1)
        self.to_centerness = nn.Conv2d(width, 1, 3, padding=1)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in strides)
        initialise(self.class_tower, self.box_tower, self.classifier, self.to_sides, self.to_angle, self.to_centerness)
        start_at_prior(self.classifier)
        nn.init.ones_(self.to_sides.bias)
        if angle == "csl":
            start_at_prior(self.to_angle)
        elif angle == "double_angle":
            self.to_angle.bias.data[0] = 1.0  # at the origin an angle has no direction to learn in

    @property
    def angle_numbers(self) -> int:
        return {"radian": 1, "double_angle": 2, "csl": self.csl.bins}[self.angle]

    def forward(self, maps: Sequence[Tensor]) -> Outputs:
        outputs = Outputs([], [], [], [])
        for level, stride, scale in zip(self.neck(maps), self.strides, self.scales):
            boxes = self.box_tower(level)
            outputs.logits.append(self.classifier(self.class_tower(level)))
            outputs.sides.append((self.to_sides(boxes).float() * scale).clamp(min=0) * stride)
            outputs.angles.append(self.to_angle(boxes))
            outputs.centerness.append(self.to_centerness(boxes))
        return outputs

    def loss(self, outputs: Outputs, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Scalars, to be summed: class, box, centerness, and angle under csl.

        targets, one per image: boxes (N, 5), labels (N,), difficult (N,) bool.
        """
        sizes = as_sizes(outputs.logits)
        device = outputs.logits[0].device
        logits, sides, angles, centerness = (
            torch.cat([as_rows(level, level.shape[1]) for level in levels], 1).flatten(0, 1) for levels in outputs
        )  # (B * points, K)
        boxes = torch.cat([target["boxes"] for target in targets]).float()
        labels = torch.cat([target["labels"] for target in targets])
        assigned = assign(sizes, self.strides, targets, radius=self.center_radius).flatten()

        positive = (assigned >= 0).nonzero()[:, 0]
        own = boxes[assigned[positive]]
        class_targets = torch.zeros_like(logits)
        class_targets[positive, labels[assigned[positive]]] = 1.0
        counted = (assigned != IGNORED).float()[:, None]
        num_positive = mean_over_processes(torch.tensor(float(len(positive)), device=device))
        losses = {"class": (focal_loss(logits, class_targets) * counted).sum() / num_positive}

        points = torch.cat([grid_points(size, stride, device) for size, stride in zip(sizes, self.strides)])
        points = points[positive % len(points)]
        strides = torch.cat([torch.full((h * w,), float(s), device=device) for (h, w), s in zip(sizes, self.strides)])
        strides = strides[positive % len(strides)]
        target_sides = distances(points, own)
        target_centerness = centerness_of(target_sides)
        weight = mean_over_processes(target_centerness.sum(), least=1e-6)
        sides, angles = sides[positive], angles[positive]
        between = self.between(points, strides, sides, angles, own, target_sides)
        losses["box"] = self.box_weight * (between * target_centerness).sum() / weight
        losses["centerness"] = (
            F.binary_cross_entropy_with_logits(centerness[positive, 0], target_centerness, reduction="sum")
            / num_positive
        )
        if self.angle == "csl":
            smooth = focal_loss(angles, self.csl.encode(own[:, 4]))
            losses["angle"] = self.angle_weight * smooth.sum() / num_positive
        return losses

    def between(
        self, points: Tensor, strides: Tensor, sides: Tensor, angles: Tensor, own: Tensor, target_sides: Tensor
    ) -> Tensor:
        """The distance (N,) between predicted boxes and their ground truths; classes of angle are compared apart."""
        angle = own[:, 4] if self.angle == "csl" else self.decode_angle(angles)
        if self.box_loss != "smooth_l1":
            return DISTANCES[self.box_loss](decode(points, sides, angle), own)
        numbers = torch.cat([(sides - target_sides) / strides[:, None], wrap(angle - own[:, 4])[:, None]], 1)
        return smooth_l1(numbers, torch.zeros_like(numbers), beta=1 / 9)

    def decode_angle(self, numbers: Tensor) -> Tensor:
        """(N, K) -> (N,) radians."""
        if self.angle == "radian":
            return numbers[:, 0]
        if self.angle == "csl":
            return self.csl.decode(numbers)
        # atan2 has no gradient at the origin
        return 0.5 * torch.atan2(numbers[:, 1], numbers[:, 0] + (numbers.square().sum(1) < 1e-12) * 1e-6)

    @torch.no_grad()
    def detect(self, outputs: Outputs) -> list[Detections]:
        """One per image."""
        sizes = as_sizes(outputs.logits)
        points = [grid_points(size, stride, outputs.logits[0].device) for size, stride in zip(sizes, self.strides)]
        rows = [[as_rows(level, level.shape[1]) for level in levels] for levels in outputs]
        results = []
        for image in range(len(outputs.logits[0])):
            found = []
            for level, (logits, sides, angles, centerness) in enumerate(zip(*rows)):
                scores = (logits[image].sigmoid() * centerness[image].sigmoid()).sqrt()
                scores, places, labels = self.postprocess.best_of_level(scores)
                angle = self.decode_angle(angles[image][places])
                boxes = decode(points[level][places], sides[image][places], angle)
                found.append((canonical(boxes), scores, labels))
            results.append(self.postprocess.suppress(*(torch.cat(parts) for parts in zip(*found))))
        return results


def decode(points: Tensor, sides: Tensor, angle: Tensor) -> Tensor:
    """points (N, 2), distances (N, 4) to left, top, right, bottom along the box's axes, angle (N,) -> boxes (N, 5)."""
    left, top, right, bottom = sides.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    x, y = (right - left) / 2, (bottom - top) / 2
    centre = (points[:, 0] + x * cos - y * sin, points[:, 1] + x * sin + y * cos)
    return torch.stack([*centre, left + right, top + bottom, angle], -1)


def distances(points: Tensor, boxes: Tensor) -> Tensor:
    """points (..., 2), boxes (..., 5) -> (..., 4): to left, top, right, bottom; negative outside."""
    offset = points - boxes[..., :2]
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    x = offset[..., 0] * cos + offset[..., 1] * sin
    y = offset[..., 1] * cos - offset[..., 0] * sin
    half_width, half_height = boxes[..., 2] / 2, boxes[..., 3] / 2
    return torch.stack([half_width + x, half_height + y, half_width - x, half_height - y], -1)


def centerness_of(sides: Tensor) -> Tensor:
    """(..., 4) -> (...) in [0, 1]."""
    left, top, right, bottom = sides.unbind(-1)
    across = torch.minimum(left, right) / torch.maximum(left, right).clamp(min=1e-6)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom).clamp(min=1e-6)
    return (across * down).clamp(min=0).sqrt()


@torch.no_grad()
def assign(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int], targets: Sequence[dict[str, Tensor]], *, radius: float
) -> Tensor:
    """(B, points of all levels): the index of the point's ground truth among all of the batch's, BACKGROUND or IGNORED.

    Points within `radius` strides of a centre lie in a small square of cells around it, so memory does not grow with
    points times boxes. Points inside a difficult box that belong to no other are ignored.
    """
    boxes = torch.cat([target["boxes"] for target in targets]).float()
    difficult = torch.cat([target["difficult"] for target in targets])
    counts = torch.tensor([len(target["boxes"]) for target in targets], device=boxes.device)
    image = torch.arange(len(targets), device=boxes.device).repeat_interleave(counts)
    total = sum(height * width for height, width in sizes)

    by_area = boxes[:, 2:4].prod(1).argsort(stable=True)
    rank = torch.empty_like(by_area)
    rank[by_area] = torch.arange(len(boxes), device=boxes.device)
    smallest = torch.full((len(targets) * total,), len(boxes), dtype=torch.int64, device=boxes.device)
    reach = math.floor(radius * math.sqrt(2) + 0.5)
    around = torch.arange(-reach, reach + 1, device=boxes.device)
    offset = 0
    for (height, width), stride, (low, high) in zip(sizes, strides, ranges_of(strides, 8.0)):
        cell = (boxes[:, :2] / stride).floor().clamp(-reach - 1, max(height, width) + reach).long()
        columns = (cell[:, 0, None, None] + around[None, None]).expand(-1, len(around), -1)  # (N, K, K)
        rows = (cell[:, 1, None, None] + around[None, :, None]).expand(-1, -1, len(around))
        points = (torch.stack([columns, rows], -1) + 0.5) * stride
        sides = distances(points, boxes[:, None, None])
        from_centre = (sides[..., :2] - sides[..., 2:]).abs().amax(-1) / 2
        farthest = sides.amax(-1)
        fits = (sides.amin(-1) > 0) & (from_centre < radius * stride) & (farthest > low) & (farthest <= high)
        fits &= (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height) & ~difficult[:, None, None]
        index = image[:, None, None] * total + offset + rows * width + columns
        smallest.scatter_reduce_(0, index[fits], rank[:, None, None].expand_as(index)[fits], "amin")
        offset += height * width
    assigned = torch.cat([by_area, by_area.new_tensor([BACKGROUND])])[smallest].view(len(targets), total)

    if difficult.any():
        points = torch.cat([grid_points(size, stride, boxes.device) for size, stride in zip(sizes, strides)])
        for number, target in enumerate(targets):
            for some in target["boxes"][target["difficult"]].float().split(256):
                covered = points_in_rotated_boxes(points, some).any(1)
                assigned[number, covered & (assigned[number] == BACKGROUND)] = IGNORED
    return assigned

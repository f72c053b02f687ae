"""Rotated RetinaNet: dense upright anchors, each classified by focal loss and refined to a rotated box.

Paper: Focal Loss for Dense Object Detection (Lin et al., 2017), arXiv:1708.02002
    per cell 9 anchors of angle 0: sides 4 * stride * 2^{0, 1/3, 2/3}, height / width 1, 1/2, 2
    positive at rotated IoU >= 0.5 or as a ground truth's best, background below 0.4
    loss = (focal(class) + distance(boxes)) / positives
Rotated as in mmrotate. Departs from it: anchors stand at the centres of cells, not at their corners.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vantage.ops.rotated_boxes import canonical, rotated_iou
from vantage.tasks.distributed import mean_over_processes
from vantage.tasks.rotated_detection.assign import IGNORED, assign_by_overlap
from vantage.tasks.rotated_detection.coders import DeltaCoder
from vantage.tasks.rotated_detection.fpn import FPN
from vantage.tasks.rotated_detection.head import (
    anchor_shapes,
    as_rows,
    as_sizes,
    initialise,
    start_at_prior,
    tower,
    upright_anchors,
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


class Outputs(NamedTuple):
    """Per level, A anchors: logits (B, A * classes, H, W), deltas (B, A * 5, H, W), angles (B, A * bins, H, W)."""

    logits: list[Tensor]
    deltas: list[Tensor]
    angles: list[Tensor]  # empty unless angle=csl


class RotatedRetinaNet(nn.Module):
    """forward(maps of the backbone) -> Outputs; loss(outputs, targets) and detect(outputs) use them.

    anchor_scale  side of the smallest square anchor in strides of its level; `scales` multiply it
    box_loss      smooth_l1 of the deltas with `beta` (0: L1), or a distance between decoded boxes
    angle         delta: the fifth delta; csl: classes, the fifth delta is not used
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
        anchor_scale: float = 4.0,
        scales: Sequence[float] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        ratios: Sequence[float] = (1.0, 0.5, 2.0),
        box_loss: BoxLossName = "smooth_l1",
        beta: float = 0.0,
        angle: Literal["delta", "csl"] = "delta",
        box_weight: float = 1.0,
        angle_weight: float = 0.2,
        score_threshold: float = 0.05,
        top_k: int = 2000,
        nms_threshold: float = 0.1,
        max_detections: int = 2000,
    ):
        super().__init__()
        check_box_loss(box_loss)
        if angle not in ("delta", "csl"):
            raise ValueError(f"task.detector.angle is {angle!r}; use delta or csl")
        self.num_classes = num_classes
        self.strides = list(strides)
        self.box_loss = box_loss
        self.beta = beta
        self.angle = angle
        self.box_weight = box_weight
        self.angle_weight = angle_weight
        self.coder = DeltaCoder(swap_edges=angle == "delta")
        self.csl = CircularSmoothLabel()
        self.postprocess = Postprocess(score_threshold, top_k, nms_threshold, max_detections)
        self.shapes = [anchor_shapes(anchor_scale * stride, scales, ratios) for stride in strides]
        per_cell = len(scales) * len(ratios)
        self.neck = FPN(
            channels,
            backbone_strides,
            strides=strides,
            out_channels=width,
            extra_from="backbone",
            dyhead_blocks=dyhead_blocks,
        )
        self.class_tower = tower(width, num_convs, norm=False)
        self.box_tower = tower(width, num_convs, norm=False)
        self.classifier = nn.Conv2d(width, per_cell * num_classes, 3, padding=1)
        self.to_deltas = nn.Conv2d(width, per_cell * 5, 3, padding=1)
        self.to_angle = nn.Conv2d(width, per_cell * self.csl.bins, 3, padding=1) if angle == "csl" else None
        initialise(self.class_tower, self.box_tower, self.classifier, self.to_deltas)
        start_at_prior(self.classifier)
        if self.to_angle is not None:
            initialise(self.to_angle)
            start_at_prior(self.to_angle)

    def forward(self, maps: Sequence[Tensor]) -> Outputs:
        outputs = Outputs([], [], [])
        for level in self.neck(maps):
            boxes = self.box_tower(level)
            outputs.logits.append(self.classifier(self.class_tower(level)))
            outputs.deltas.append(self.to_deltas(boxes))
            if self.to_angle is not None:
                outputs.angles.append(self.to_angle(boxes))
        return outputs

    def anchors(self, outputs: Outputs) -> list[Tensor]:
        """Per level (H * W * A, 5)."""
        device = outputs.logits[0].device
        levels = zip(as_sizes(outputs.logits), self.strides, self.shapes)
        upright = [upright_anchors(size, stride, shapes.to(device)) for size, stride, shapes in levels]
        return [torch.cat([level, torch.zeros_like(level[:, :1])], 1) for level in upright]

    def loss(self, outputs: Outputs, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Scalars, to be summed: class, box, and angle under csl.

        targets, one per image: boxes (N, 5), labels (N,), difficult (N,) bool.
        """
        anchors = torch.cat(self.anchors(outputs))
        logits = torch.cat([as_rows(level, self.num_classes) for level in outputs.logits], 1)
        deltas = torch.cat([as_rows(level, 5) for level in outputs.deltas], 1)
        assigned = torch.stack(
            [
                assign_by_overlap(
                    anchors,
                    target["boxes"].float(),
                    target["difficult"],
                    overlap=rotated_iou,
                    covered=partial(rotated_iou, mode="iof"),
                    positive=0.5,
                    negative=0.4,
                    low_quality=True,
                )
                for target in targets
            ]
        )  # (B, anchors)
        image, place = (assigned >= 0).nonzero().unbind(1)
        starts = torch.tensor([0, *(len(target["boxes"]) for target in targets)], device=image.device).cumsum(0)
        index = assigned[image, place] + starts[image]
        own = torch.cat([target["boxes"] for target in targets]).float()[index]
        labels = torch.cat([target["labels"] for target in targets])[index]
        num_positive = mean_over_processes(torch.tensor(float(len(own)), device=own.device))

        class_targets = torch.zeros_like(logits)
        class_targets[image, place, labels] = 1.0
        counted = (assigned != IGNORED).float()[..., None]
        losses = {"class": (focal_loss(logits, class_targets) * counted).sum() / num_positive}
        between = self.between(anchors[place], deltas[image, place], own)
        losses["box"] = self.box_weight * between.sum() / num_positive
        if self.to_angle is not None:
            angles = torch.cat([as_rows(level, self.csl.bins) for level in outputs.angles], 1)[image, place]
            losses["angle"] = self.angle_weight * focal_loss(angles, self.csl.encode(own[:, 4])).sum() / num_positive
        return losses

    def between(self, anchors: Tensor, deltas: Tensor, own: Tensor) -> Tensor:
        """The distance (N,) between predicted boxes and their ground truths; classes of angle are compared apart."""
        if self.box_loss == "smooth_l1":
            targets = self.coder.encode(anchors, own)
            numbers = 4 if self.angle == "csl" else 5
            return smooth_l1(deltas[:, :numbers], targets[:, :numbers], beta=self.beta)
        boxes = self.coder.decode(anchors, deltas)
        if self.angle == "csl":
            boxes = torch.cat([boxes[:, :4], own[:, 4:]], 1)
        return DISTANCES[self.box_loss](boxes, own)

    @torch.no_grad()
    def detect(self, outputs: Outputs) -> list[Detections]:
        """One per image."""
        anchors = self.anchors(outputs)
        logits = [as_rows(level, self.num_classes) for level in outputs.logits]
        deltas = [as_rows(level, 5) for level in outputs.deltas]
        angles = [as_rows(level, self.csl.bins) for level in outputs.angles]
        results = []
        for image in range(len(logits[0])):
            found = []
            for level, anchors_of_level in enumerate(anchors):
                scores, places, labels = self.postprocess.best_of_level(logits[level][image].sigmoid())
                boxes = self.coder.decode(anchors_of_level[places], deltas[level][image][places])
                if angles:
                    boxes = torch.cat([boxes[:, :4], self.csl.decode(angles[level][image][places])[:, None]], 1)
                found.append((canonical(boxes), scores, labels))
            results.append(self.postprocess.suppress(*(torch.cat(parts) for parts in zip(*found))))
        return results

"""Oriented R-CNN: an RPN that proposes rotated boxes by midpoint offsets, and a head on rotated regions.

Paper: Oriented R-CNN for Object Detection (Xie et al., 2021), arXiv:2108.05699
    RPN    upright anchors of side 8 * stride, height / width 1/2, 1, 2; positive at IoU >= 0.7 of upright boxes or as
           a ground truth's best, background below 0.3; 256 per image, half positive; BCE, smooth L1 (beta 1/9) of six
           midpoint offsets; the best 2000 per level, NMS of the upright boxes at 0.8, the best 2000
    head   rotated IoU 0.5, 512 per image, a quarter positive, ground truths added; RotatedRoIAlign 7x7 from level
           floor(log2(sqrt(w h) / 56)); two layers of 1024; cross entropy, smooth L1 (beta 1) of class-agnostic deltas
Departs from mmrotate: anchors stand at the centres of cells, not at their corners.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from vantage.ops.rotated_boxes import canonical, enclosing_xyxy, rotated_iou, rotated_roi_align
from vantage.tasks.distributed import mean_over_processes
from vantage.tasks.rotated_detection.assign import assign_by_overlap, draw_sample, upright_overlap
from vantage.tasks.rotated_detection.coders import DeltaCoder, MidpointOffsetCoder
from vantage.tasks.rotated_detection.fpn import FPN
from vantage.tasks.rotated_detection.head import anchor_shapes, as_rows, as_sizes, initialise, upright_anchors
from vantage.tasks.rotated_detection.losses import (
    DISTANCES,
    BoxLossName,
    check_box_loss,
    smooth_l1,
)
from vantage.tasks.rotated_detection.postprocess import Detections, Postprocess

ROI_SIZE = 7
SAMPLING_RATIO = 2


class Outputs(NamedTuple):
    """Per level, A anchors: the pyramid (B, C, H, W), objectness (B, A, H, W), deltas (B, A * 6, H, W)."""

    pyramid: list[Tensor]
    objectness: list[Tensor]
    deltas: list[Tensor]


class OrientedRCNN(nn.Module):
    """forward(maps of the backbone) -> Outputs of the RPN; loss(outputs, targets) and detect(outputs) use them.

    box_loss   of the head: smooth_l1 of the deltas, or a distance between decoded boxes
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        backbone_strides: Sequence[int],
        num_classes: int,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        width: int = 256,
        dyhead_blocks: int = 0,
        anchor_scale: float = 8.0,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rpn_samples: int = 256,
        proposals: int = 2000,
        proposal_nms: float = 0.8,
        head_width: int = 1024,
        head_samples: int = 512,
        box_loss: BoxLossName = "smooth_l1",
        box_weight: float = 1.0,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.1,
        max_detections: int = 2000,
    ):
        super().__init__()
        check_box_loss(box_loss)
        self.num_classes = num_classes
        self.strides = list(strides)
        self.rpn_samples = rpn_samples
        self.proposals = proposals
        self.proposal_nms = proposal_nms
        self.head_samples = head_samples
        self.box_loss = box_loss
        self.box_weight = box_weight
        self.rpn_coder = MidpointOffsetCoder()
        self.coder = DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2, 0.1))
        self.postprocess = Postprocess(score_threshold, proposals, nms_threshold, max_detections)
        self.shapes = [anchor_shapes(anchor_scale * stride, (1.0,), ratios) for stride in strides]
        self.neck = FPN(
            channels,
            backbone_strides,
            strides=strides,
            out_channels=width,
            extra_from="pool",
            dyhead_blocks=dyhead_blocks,
        )
        self.rpn = nn.Conv2d(width, width, 3, padding=1)
        self.to_objectness = nn.Conv2d(width, len(ratios), 1)
        self.to_offsets = nn.Conv2d(width, len(ratios) * 6, 1)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width * ROI_SIZE**2, head_width),
            nn.ReLU(inplace=True),
            nn.Linear(head_width, head_width),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(head_width, num_classes + 1)  # the last class is background
        self.to_deltas = nn.Linear(head_width, 5)
        initialise(self.rpn, self.to_objectness, self.to_offsets)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.normal_(self.to_deltas.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)
        nn.init.zeros_(self.to_deltas.bias)

    def forward(self, maps: Sequence[Tensor]) -> Outputs:
        outputs = Outputs([], [], [])
        for level in self.neck(maps):
            hidden = F.relu(self.rpn(level))
            outputs.pyramid.append(level)
            outputs.objectness.append(self.to_objectness(hidden))
            outputs.deltas.append(self.to_offsets(hidden))
        return outputs

    def anchors(self, outputs: Outputs) -> list[Tensor]:
        """Per level (H * W * A, 4) as corners."""
        device = outputs.pyramid[0].device
        levels = zip(as_sizes(outputs.pyramid), self.strides, self.shapes)
        boxes = [upright_anchors(size, stride, shapes.to(device)) for size, stride, shapes in levels]
        return [torch.cat([level[:, :2] - level[:, 2:] / 2, level[:, :2] + level[:, 2:] / 2], 1) for level in boxes]

    def loss(self, outputs: Outputs, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Scalars, to be summed: rpn_class, rpn_box, class, box.

        targets, one per image: boxes (N, 5), labels (N,), difficult (N,) bool.
        """
        targets = [{**target, "boxes": target["boxes"].float()} for target in targets]
        anchors = self.anchors(outputs)
        losses = self.rpn_loss(outputs, torch.cat(anchors), targets)
        with torch.no_grad():
            proposals = [boxes for boxes, _ in self.propose(outputs, anchors)]
        return losses | self.head_loss(outputs.pyramid, proposals, targets)

    def rpn_loss(self, outputs: Outputs, anchors: Tensor, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        objectness = torch.cat([as_rows(level, 1)[..., 0] for level in outputs.objectness], 1)  # (B, anchors)
        deltas = torch.cat([as_rows(level, 6) for level in outputs.deltas], 1)
        class_sum, box_sum = objectness.sum() * 0.0, deltas.sum() * 0.0
        number = torch.zeros((), device=anchors.device)
        for image, target in enumerate(targets):
            assigned = assign_by_overlap(
                anchors,
                enclosing_xyxy(target["boxes"]),
                target["difficult"],
                overlap=upright_overlap,
                covered=partial(upright_overlap, share_of_first=True),
                positive=0.7,
                negative=0.3,
                low_quality=True,
            )
            positives, background = draw_sample(assigned, self.rpn_samples, 0.5)
            drawn = objectness[image][torch.cat([positives, background])]
            wanted = torch.zeros_like(drawn)
            wanted[: len(positives)] = 1.0
            class_sum = class_sum + F.binary_cross_entropy_with_logits(drawn, wanted, reduction="sum")
            offsets = self.rpn_coder.encode(anchors[positives], target["boxes"][assigned[positives]])
            box_sum = box_sum + smooth_l1(deltas[image][positives], offsets, beta=1 / 9).sum()
            number += len(drawn)
        number = mean_over_processes(number)
        return {"rpn_class": class_sum / number, "rpn_box": box_sum / number}

    def propose(self, outputs: Outputs, anchors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per image the proposed boxes (N, 5) and their objectness (N,), best first."""
        objectness = [as_rows(level, 1)[..., 0] for level in outputs.objectness]
        deltas = [as_rows(level, 6) for level in outputs.deltas]
        results = []
        for image in range(len(objectness[0])):
            found = []
            for level, anchors_of_level in enumerate(anchors):
                order = objectness[level][image].sort(descending=True, stable=True).indices[: self.proposals]
                scores = objectness[level][image][order].sigmoid()
                boxes = self.rpn_coder.decode(anchors_of_level[order], deltas[level][image][order])
                keep = nms(enclosing_xyxy(boxes), scores, self.proposal_nms)
                found.append((boxes[keep], scores[keep]))
            boxes, scores = (torch.cat(parts) for parts in zip(*found))
            best = scores.sort(descending=True, stable=True).indices[: self.proposals]
            results.append((boxes[best], scores[best]))
        return results

    def head_loss(
        self, pyramid: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        regions, own, labels = [], [], []
        for boxes, target in zip(proposals, targets):
            boxes = torch.cat([target["boxes"][~target["difficult"]], boxes])
            assigned = assign_by_overlap(
                boxes,
                target["boxes"],
                target["difficult"],
                overlap=rotated_iou,
                covered=partial(rotated_iou, mode="iof"),
                positive=0.5,
                negative=0.5,
                low_quality=False,
            )
            positives, background = draw_sample(assigned, self.head_samples, 0.25)
            regions.append(boxes[torch.cat([positives, background])])
            own.append(target["boxes"][assigned[positives]])
            labels.append(
                torch.cat([target["labels"][assigned[positives]], torch.full_like(background, self.num_classes)])
            )
        logits, deltas = self.classify(pyramid, regions)
        labels, regions = torch.cat(labels), torch.cat(regions)
        number = mean_over_processes(torch.tensor(float(len(labels)), device=labels.device))
        is_positive = labels < self.num_classes
        between = self.between(regions[is_positive], deltas[is_positive], torch.cat(own))
        return {
            "class": F.cross_entropy(logits, labels, reduction="sum") / number,
            "box": self.box_weight * between.sum() / number,
        }

    def between(self, regions: Tensor, deltas: Tensor, own: Tensor) -> Tensor:
        """The distance (N,) between predicted boxes and their ground truths."""
        if self.box_loss == "smooth_l1":
            return smooth_l1(deltas, self.coder.encode(regions, own), beta=1.0)
        return DISTANCES[self.box_loss](self.coder.decode(regions, deltas), own)

    def classify(self, pyramid: Sequence[Tensor], regions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Regions (N, 5) per image -> logits (all N, classes + 1), deltas (all N, 5), float32."""
        counts = torch.tensor([len(boxes) for boxes in regions], device=pyramid[0].device)
        image = torch.arange(len(regions), device=counts.device).repeat_interleave(counts)
        boxes = torch.cat(list(regions))
        rois = torch.cat([image[:, None].to(boxes.dtype), boxes], 1)
        # regions of side 14 strides, 56 px on stride 4, and larger go one level up each time they double
        side = boxes[:, 2:4].prod(1).clamp(min=1e-6).sqrt()
        level = (side / (14.0 * self.strides[0])).log2().add(1e-6).floor().clamp(0, self.num_region_levels - 1)
        pooled = rois.new_zeros(len(rois), pyramid[0].shape[1], ROI_SIZE, ROI_SIZE)
        for number in range(self.num_region_levels):
            index = (level == number).nonzero()[:, 0]
            if len(index):
                maps = pyramid[number].float()
                part = rotated_roi_align(maps, rois[index], ROI_SIZE, 1 / self.strides[number], SAMPLING_RATIO)
                pooled = pooled.index_copy(0, index, part)
        hidden = self.head(pooled)
        return self.classifier(hidden).float(), self.to_deltas(hidden).float()

    @property
    def num_region_levels(self) -> int:
        return max(1, len(self.strides) - 1)  # the last level is for proposals only

    @torch.no_grad()
    def detect(self, outputs: Outputs) -> list[Detections]:
        """One per image."""
        regions = [boxes for boxes, _ in self.propose(outputs, self.anchors(outputs))]
        logits, deltas = self.classify(outputs.pyramid, regions)
        counts = [len(boxes) for boxes in regions]
        results = []
        for boxes, logits_of_image, deltas_of_image in zip(regions, logits.split(counts), deltas.split(counts)):
            probabilities = logits_of_image.softmax(1)[:, : self.num_classes]
            scores, places, labels = self.postprocess.best_of_level(probabilities)
            boxes = canonical(self.coder.decode(boxes[places], deltas_of_image[places]))
            results.append(self.postprocess.suppress(boxes, scores, labels))
        return results

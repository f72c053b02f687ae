"""Mean average precision of rotated boxes by the rule of the DOTA devkit, over whole (merged) images.

Source: DOTA_devkit, dota_evaluation_task1.py (`voc_eval`, `voc_ap`), after PASCAL VOC:
    detections of a class, all images together, in descending order of score;
    each looks at the ground truth of its image and class that it overlaps most, difficult ones included;
    IoU strictly above the threshold: first on that ground truth = hit, later = false positive, difficult = ignored;
    else false positive. Difficult ground truths do not count as positives.
    AP, area: area under the precision made monotone; VOC07: mean of it at recall 0, 0.1 ... 1.
Departs from the devkit where its result depends on the order of its input: detections of equal score enter the curve
together. Without ties the two are equal.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torchmetrics
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from vantage.ops.rotated_boxes import rotated_iou

THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
SIZES = ("small", "medium", "large")

# columns of the two tables, which are kept flat: a process that has seen no image takes part in a gather with zero rows
DETECTION = ("label", "score", "size", "iou", "rival", "gt_size", "gt_difficult")
GROUND_TRUTH = ("label", "size", "difficult")


class Curve(NamedTuple):
    """Precision over recall of one class, a point per distinct score, highest score first."""

    recall: np.ndarray
    precision: np.ndarray
    score: np.ndarray


class RotatedMeanAveragePrecision(torchmetrics.Metric):
    """update(predictions, targets), one dict per whole image: {"boxes" (N, 5), "scores" (N,), "labels" (N,)} and
    {"boxes" (M, 5), "labels" (M,), "difficult" (M,) bool}; all detections of an image come in one call.

    compute() -> {
        "mAP50", "mAP75", "mAP"   mean AP (area) over the classes that have ground truths, at IoU .5, .75, .5:.95;
        the same with "_voc07"    the 11-point AP;
        the same with "_small", "_medium", "_large"  AP (area) of ground truths by sqrt(area) in pixels, cut at
                                  `size_edges`; a ground truth of another size is treated as a difficult one, an
                                  unmatched detection of another size is ignored; NaN where there is none;
        "per_class"               {name: array (classes,)}: ground_truths, difficult, detections, AP50, AP75, AP,
                                  *_voc07; arrays, for torchmetrics makes scalars of tensors of one element;
        "curves"                  a Curve per class at IoU .5;
        "confusion"               int64 (classes + 1, classes + 1): rows true, columns predicted, the last is
                                  background; detections of score >= `confusion_score` and ground truths are paired by
                                  falling IoU > `confusion_iou`, whatever their classes; difficult ones do not count
    }
    The result does not depend on the order of images, of detections or of processes.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    def __init__(
        self,
        num_classes: int,
        *,
        iou_thresholds: Sequence[float] = THRESHOLDS,
        size_edges: tuple[float, float] = (32.0, 96.0),
        confusion_score: float = 0.3,
        confusion_iou: float = 0.5,
    ):
        super().__init__()
        missing = {0.5, 0.75} - set(iou_thresholds)
        if missing:
            raise ValueError(f"iou_thresholds {tuple(iou_thresholds)} lack {min(missing)}; keep .5 and .75 among them")
        self.num_classes = num_classes
        self.iou_thresholds = tuple(iou_thresholds)
        self.size_edges = size_edges
        self.confusion_score = confusion_score
        self.confusion_iou = confusion_iou
        self.add_state("detections", [], dist_reduce_fx="cat")
        self.add_state("ground_truths", [], dist_reduce_fx="cat")
        self.add_state("confusion", torch.zeros((num_classes + 1) ** 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Tensor]]) -> None:
        if len(predictions) != len(targets):
            raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets; give one of each per image")
        for prediction, target in zip(predictions, targets):
            boxes, scores, labels = self.checked(prediction)
            gt_boxes, gt_labels = target["boxes"].detach().double(), target["labels"].detach().long()
            difficult = target["difficult"].detach().bool()
            gt_sizes = gt_boxes[:, 2:4].prod(1).sqrt()
            sizes = boxes[:, 2:4].prod(1).sqrt()
            table = torch.stack([gt_labels.double(), gt_sizes, difficult.double()], 1)
            self.ground_truths.append(table.flatten().float())
            for label in labels.unique().tolist():
                mine, theirs = labels == label, gt_labels == label
                iou, rival, best = match(boxes[mine], gt_boxes[theirs])
                if len(gt_boxes[theirs]):
                    gt_size, gt_difficult = gt_sizes[theirs][best], difficult[theirs][best].double()
                else:
                    gt_size = gt_difficult = torch.zeros_like(iou)
                columns = (labels[mine].double(), scores[mine], sizes[mine], iou, rival, gt_size, gt_difficult)
                self.detections.append(torch.stack(columns, 1).flatten().float())
            sure = scores >= self.confusion_score
            counts = confuse(
                (boxes[sure], labels[sure]), (gt_boxes, gt_labels, difficult), self.num_classes, self.confusion_iou
            )
            self.confusion += counts.flatten().to(self.confusion.device)

    def checked(self, prediction: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels in descending order of score, equal scores in an order that is the values' own."""
        boxes, scores = prediction["boxes"].detach().double(), prediction["scores"].detach().double()
        labels = prediction["labels"].detach().long()
        if not (len(boxes) == len(scores) == len(labels)):
            raise ValueError(
                f"{len(boxes)} boxes, {len(scores)} scores and {len(labels)} labels; give one per detection"
            )
        if not (torch.isfinite(boxes).all() and torch.isfinite(scores).all()):
            raise ValueError("predicted boxes or scores are not finite; the model has diverged")
        if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < self.num_classes):
            wrong = int(labels[(labels < 0) | (labels >= self.num_classes)][0])
            raise ValueError(f"a predicted label is {wrong}; labels are in 0..{self.num_classes - 1}")
        order = torch.arange(len(scores), device=scores.device)
        for key in (*boxes.unbind(1)[::-1], labels, -scores):
            order = order[key[order].argsort(stable=True)]
        return boxes[order], scores[order], labels[order]

    def tables(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Columns by name of all detections and all ground truths, on the CPU."""

        def columns(state: list[Tensor] | Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
            flat = dim_zero_cat(state) if len(state) else torch.zeros(0)
            return dict(zip(names, flat.cpu().view(-1, len(names)).unbind(1)))

        return columns(self.detections, DETECTION), columns(self.ground_truths, GROUND_TRUTH)

    def compute(self) -> dict:
        detections, truths = self.tables()
        thresholds = torch.tensor(self.iou_thresholds)
        at = {"AP50": self.iou_thresholds.index(0.5), "AP75": self.iou_thresholds.index(0.75), "AP": slice(None)}
        everything = (0.0, torch.inf)
        edges = (0.0, *self.size_edges, torch.inf)
        ranges = {"": everything} | {f"_{name}": pair for name, pair in zip(SIZES, pairwise(edges))}
        area = {suffix: torch.full((self.num_classes, len(thresholds)), torch.nan) for suffix in ranges}
        voc07 = torch.full((self.num_classes, len(thresholds)), torch.nan)
        curves = []
        for label in range(self.num_classes):
            own = {name: column[detections["label"] == label] for name, column in detections.items()}
            gt_sizes = truths["size"][(truths["label"] == label) & (truths["difficult"] == 0)]
            for suffix, (low, high) in ranges.items():
                positives = int(((gt_sizes >= low) & (gt_sizes < high)).sum())
                recall, precision, scores = precision_over_recall(own, positives, thresholds, (low, high))
                if positives:
                    area[suffix][label] = area_under(recall, precision).float()
                if suffix == "":
                    if positives:
                        voc07[label] = eleven_points(recall, precision).float()
                    first = at["AP50"]
                    curves.append(Curve(recall[:, first].numpy(), precision[:, first].numpy(), scores.numpy()))
        results: dict = {}
        for suffix, table in {**area, "_voc07": voc07}.items():
            results |= {f"m{name}{suffix}": table[:, columns].nanmean() for name, columns in at.items()}
        per_class = {
            "ground_truths": count(truths["label"], self.num_classes),
            "difficult": count(truths["label"][truths["difficult"] > 0], self.num_classes),
            "detections": count(detections["label"], self.num_classes),
        }
        for suffix, table in {"": area[""], "_voc07": voc07}.items():
            per_class |= {
                f"{name}{suffix}": table[:, columns] if table[:, columns].ndim == 1 else table[:, columns].mean(1)
                for name, columns in at.items()
            }
        side = self.num_classes + 1
        return {
            **{name: value.to(self.device) for name, value in results.items()},
            "per_class": {name: values.numpy() for name, values in per_class.items()},
            "curves": curves,
            "confusion": self.confusion.cpu().view(side, side).clone(),
        }


def match(boxes: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of detections (N, 5) in descending order of score, all of one image and class: the largest IoU with a ground
    truth, the largest IoU with that ground truth of the detections before that have it as their best too, its index.

    At threshold t a detection is the first on its ground truth where iou > t >= rival.
    """
    if not len(gt_boxes):
        nothing = boxes.new_zeros(len(boxes))
        return nothing, nothing, nothing.long()
    iou, best = rotated_iou(boxes, gt_boxes).max(1)
    claims = boxes.new_zeros(len(boxes) + 1, len(gt_boxes))
    claims[1:].scatter_(1, best[:, None], iou[:, None])
    rival = claims[:-1].cummax(0).values.gather(1, best[:, None])[:, 0]
    return iou, rival, best


def precision_over_recall(
    detections: dict[str, Tensor], positives: int, thresholds: Tensor, sizes: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Recall and precision (scores, thresholds) after each distinct score (scores,), the highest first; float64."""
    low, high = sizes
    order = detections["score"].argsort(descending=True)
    column = {name: values[order][:, None] for name, values in detections.items()}
    is_ignored = (column["gt_difficult"] > 0) | (column["gt_size"] < low) | (column["gt_size"] >= high)
    is_outside = (column["size"] < low) | (column["size"] >= high)
    # both sides in float32: an IoU of exactly 0.6 is not above 0.6
    is_matched = column["iou"] > thresholds
    is_first = column["rival"] <= thresholds
    hits = is_matched & ~is_ignored & is_first
    misses = torch.where(is_matched, ~is_ignored & ~is_first, ~is_outside)
    scores = column["score"][:, 0]
    is_last = torch.ones(len(scores), dtype=torch.bool)
    is_last[:-1] = scores[:-1] != scores[1:]
    hits, misses = (flags.double().cumsum(0)[is_last] for flags in (hits, misses))
    return hits / max(positives, 1), hits / (hits + misses).clamp(min=1), scores[is_last]


def area_under(recall: Tensor, precision: Tensor) -> Tensor:
    """(points, thresholds) -> (thresholds,): the area under the precision made monotone from the right."""
    start = recall.new_zeros(1, recall.shape[1])
    envelope = torch.cat([precision, start]).flip(0).cummax(0).values.flip(0)[:-1]
    return (torch.diff(recall, dim=0, prepend=start) * envelope).sum(0)


def eleven_points(recall: Tensor, precision: Tensor) -> Tensor:
    """(points, thresholds) -> (thresholds,): the mean over recall 0, 0.1 ... 1 of the best precision from there on."""
    levels = torch.arange(11, dtype=torch.float64) * 0.1  # as numpy.arange(0, 1.1, 0.1): 3/10 does not reach the fourth
    reached = recall[None] >= levels[:, None, None]  # (11, points, thresholds)
    if not len(recall):
        return recall.new_zeros(recall.shape[1])
    return torch.where(reached, precision[None], 0.0).amax(1).mean(0)


def count(labels: Tensor, num_classes: int) -> Tensor:
    return torch.bincount(labels.long(), minlength=num_classes)


def confuse(
    detections: tuple[Tensor, Tensor], truths: tuple[Tensor, Tensor, Tensor], num_classes: int, threshold: float
) -> Tensor:
    """(classes + 1, classes + 1) counts of one image; detections in descending order of score."""
    boxes, labels = detections
    gt_boxes, gt_labels, difficult = truths
    counts = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.int64)
    iou = rotated_iou(boxes, gt_boxes).cpu()
    pairs = (iou > threshold).nonzero()
    pairs = pairs[iou[pairs[:, 0], pairs[:, 1]].argsort(descending=True, stable=True)].tolist()
    partner_of: dict[int, int] = {}
    taken: set[int] = set()
    for detection, truth in pairs:
        if detection not in partner_of and truth not in taken:
            partner_of[detection] = truth
            taken.add(truth)
    labels, gt_labels, difficult = labels.tolist(), gt_labels.tolist(), difficult.tolist()
    for detection, label in enumerate(labels):
        truth = partner_of.get(detection)
        if truth is None:
            counts[num_classes, label] += 1
        elif not difficult[truth]:
            counts[gt_labels[truth], label] += 1
    for truth, label in enumerate(gt_labels):
        if truth not in taken and not difficult[truth]:
            counts[label, num_classes] += 1
    return counts

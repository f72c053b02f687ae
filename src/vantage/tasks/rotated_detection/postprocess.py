"""From a head's dense scores and boxes to the detections of an image."""

from dataclasses import dataclass

from torch import Tensor

from vantage.ops.rotated_boxes import rotated_nms


@dataclass(frozen=True)
class Detections:
    """Of one image, highest score first: boxes (N, 5) in its pixels, scores (N,), labels (N,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def as_dict(self) -> dict[str, Tensor]:
        return {"boxes": self.boxes, "scores": self.scores, "labels": self.labels}


@dataclass(frozen=True)
class Postprocess:
    """Score threshold, the best `top_k` per level, rotated NMS per class, the best `max_detections`."""

    score_threshold: float = 0.05
    top_k: int = 2000
    nms_threshold: float = 0.1
    max_detections: int = 2000

    def best_of_level(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """scores (places, classes) -> (scores, places, labels) of the best pairs above the threshold, sorted."""
        values = scores.flatten()
        candidates = (values > self.score_threshold).nonzero()[:, 0]
        order = values[candidates].sort(descending=True, stable=True).indices[: self.top_k]
        chosen = candidates[order]
        return values[chosen], chosen // scores.shape[1], chosen % scores.shape[1]

    def suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Detections:
        """What is left of an image's candidates of all levels."""
        keep = rotated_nms(boxes, scores, self.nms_threshold, labels=labels)[: self.max_detections]
        return Detections(boxes[keep], scores[keep], labels[keep])

"""Figures of a classifier: a batch as the model sees it, the confusion matrix, the worst mistakes, predictions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from vantage.analysis.attention_maps import NoAttentionMapError, attention_maps, draw_attention
from vantage.analysis.confusion import count_confusions, draw_confusion
from vantage.analysis.figures import INK, RIGHT, WRONG, Tile, draw_tiles
from vantage.data.info import DataInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


def to_pictures(images: Tensor, info: DataInfo) -> np.ndarray:
    """Normalised (B, C, H, W) to (B, H, W, 3) in [0, 1]; one channel becomes grey; of more, the first three show."""
    pictures = info.denormalize(images.detach().float().cpu()).clamp(0, 1)
    pictures = pictures[:, :3] if pictures.shape[1] >= 3 else pictures[:, :1].expand(-1, 3, -1, -1)
    return pictures.permute(0, 2, 3, 1).numpy()


def draw_batch(images: Tensor, targets: Tensor, info: DataInfo, *, limit: int = 32) -> Figure:
    """The batch the model was given; targets are labels (B,) or, under mixup and cutmix, probabilities (B, classes)."""
    pictures = to_pictures(images[:limit], info)
    tiles = [Tile(picture, target_caption(target, info)) for picture, target in zip(pictures, targets[:limit].cpu())]
    height, width = images.shape[-2:]
    shown = f"{min(limit, len(images))} of {len(images)} images, {height}×{width} px"
    return draw_tiles(tiles, columns=8, title=f"First training batch as the model sees it: {shown}")


def target_caption(target: Tensor, info: DataInfo) -> tuple[str, ...]:
    """The class, or the two classes of a mixed image with their shares; label smoothing's even floor is not shown."""
    if target.ndim == 0:
        return (info.class_names[int(target)],)
    shares, classes = target.float().topk(min(2, len(target)))
    floor = float(target.min())
    if len(target) > 2 and float(shares[1]) - floor < 0.005:
        return (info.class_names[int(classes[0])],)
    return tuple(f"{info.class_names[int(k)]} · {share:.0%}" for share, k in zip(shares.tolist(), classes))


def confusion_title(counts: Tensor, split: str) -> str:
    right, samples = int(counts.diagonal().sum()), int(counts.sum())
    return f"Confusion matrix, {split}: {right} of {samples} right ({right / max(samples, 1):.2%})"


@dataclass(frozen=True)
class Mistake:
    image: Tensor  # (C, H, W), normalised
    label: int
    prediction: int
    probability: float
    index: int


class Evidence:
    """What one pass over a split leaves for its figures: confusion counts, the most confident mistakes, and one image
    of each of the first classes, to look at the attention with.
    """

    def __init__(self, info: DataInfo, *, limit: int = 24, samples: int = 4):
        self.info = info
        self.limit = limit
        self.most_samples = samples
        self.counts = torch.zeros(info.num_classes, info.num_classes, dtype=torch.long)
        self.mistakes: list[Mistake] = []
        self.samples: dict[int, Tensor] = {}  # label -> (C, H, W), normalised

    def update(self, images: Tensor, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """images (B, C, H, W), logits (B, classes), labels and indices (B,)."""
        logits, labels, indices = logits.detach().float().cpu(), labels.cpu(), indices.cpu()
        probabilities, predictions = logits.softmax(1).max(1)
        self.counts += count_confusions(labels, predictions, self.info.num_classes)
        floor = self.mistakes[-1].probability if len(self.mistakes) == self.limit else -1.0
        wrong = ((predictions != labels) & (probabilities > floor)).nonzero().flatten()
        for i in wrong[probabilities[wrong].argsort(descending=True)[: self.limit]].tolist():
            image = images[i].detach().float().cpu()
            numbers = (int(labels[i]), int(predictions[i]), float(probabilities[i]), int(indices[i]))
            self.mistakes.append(Mistake(image, *numbers))
        self.mistakes = sorted(self.mistakes, key=lambda mistake: -mistake.probability)[: self.limit]
        for i, label in enumerate(labels.tolist()):
            if len(self.samples) == self.most_samples:
                break
            if label not in self.samples:
                self.samples[label] = images[i].detach().float().cpu()


def draw_mistakes(mistakes: Sequence[Mistake], names: Sequence[str], info: DataInfo, *, split: str) -> Figure:
    """The mistakes, most confident first; `names` says which sample each one is."""
    pictures = to_pictures(torch.stack([mistake.image for mistake in mistakes]), info)
    tiles = [
        Tile(
            picture,
            (
                f"true {info.class_names[mistake.label]}",
                f"→ {info.class_names[mistake.prediction]} · {mistake.probability:.1%}",
                name,
            ),
            (RIGHT, WRONG, "#777777"),
        )
        for picture, mistake, name in zip(pictures, mistakes, names)
    ]
    title = f"Worst mistakes, {split}: the {len(mistakes)} most confident wrong predictions"
    return draw_tiles(tiles, columns=8, title=title)


def draw_predictions(pictures: np.ndarray, captions: Iterable[tuple[str, str]], *, page: int, pages: int) -> Figure:
    """A contact sheet: pictures (B, H, W, 3), captions (prediction with its probability, file name)."""
    tiles = [
        Tile(picture, (prediction, name), (INK, "#777777")) for picture, (prediction, name) in zip(pictures, captions)
    ]
    return draw_tiles(tiles, columns=6, title=f"Predictions, sheet {page} of {pages}: class and probability")


def draw_attention_of(
    backbone: nn.Module, images: Tensor, captions: Sequence[tuple[str, ...]], info: DataInfo
) -> Figure | None:
    """Attention over images (B, C, H, W), normalised; None, with the reason logged, if the backbone has no map."""
    weight = next(backbone.parameters())
    try:
        maps = attention_maps(backbone, images.to(weight.device, weight.dtype))
    except NoAttentionMapError as error:
        logger.info("no picture of the attention: %s", error)
        return None
    return draw_attention(maps, to_pictures(images, info), captions)


class ClassificationPictures:
    """When to draw what is the callback's to say (vantage.training.pictures), what to draw is said here."""

    every_validation = False

    def __init__(self, backbone: nn.Module, info: DataInfo):
        self.backbone = backbone
        self.info = info

    def first_batch(self, batch: dict, outputs: dict) -> dict[str, Figure]:
        return {"first_batch": draw_batch(outputs["images"], outputs["targets"], self.info)}

    def start(self) -> None:
        self.evidence = Evidence(self.info)

    def update(self, batch: dict, outputs: dict) -> None:
        self.evidence.update(batch["image"], outputs["logits"], batch["label"], batch["index"])

    def finish(self, split: str, name_of: Callable[[int], str]) -> dict[str, Figure]:
        evidence, info = self.evidence, self.info
        title = confusion_title(evidence.counts, split)
        figures = {"confusion_matrix": draw_confusion(evidence.counts, info.class_names, title=title)}
        if evidence.mistakes:
            names = ["/".join(PurePath(name_of(mistake.index)).parts[-2:]) for mistake in evidence.mistakes]
            figures["worst_mistakes"] = draw_mistakes(evidence.mistakes, names, info, split=split)
        if evidence.samples:
            labels = [(info.class_names[label],) for label in evidence.samples]
            images = torch.stack(list(evidence.samples.values()))
            figures["attention"] = draw_attention_of(self.backbone, images, labels, info)
        return {f"{name}_{split}": figure for name, figure in figures.items() if figure is not None}

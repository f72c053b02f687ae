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
from vantage.analysis.figures import INK, RIGHT, WRONG, Tile, blank, draw_tiles
from vantage.data.info import DataInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

COUNTS_UP_TO = 25  # classes; beyond that a number does not fit its cell
NAMES_UP_TO = 110  # classes; beyond that names would overlap


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


def count_confusions(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """(classes, classes) counts: rows are true classes, columns predicted ones."""
    cells = labels.long().cpu() * num_classes + predictions.long().cpu()
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def draw_confusion(counts: Tensor, class_names: Sequence[str], *, split: str) -> Figure:
    """Colour: the share of a true class that went to a prediction. Numbers: counts, where they fit a cell."""
    from matplotlib.colors import PowerNorm

    num_classes = len(class_names)
    # inches of the square: a cell with a number needs 0.3, a row with a name 0.075
    side = max(3.0, 0.3 * num_classes) if num_classes <= COUNTS_UP_TO else min(max(5.0, 0.075 * num_classes), 8.5)
    names_shown = num_classes <= NAMES_UP_TO
    name_size = min(7.0, 62 * side / num_classes) if names_shown else 7.0
    longest = max(len(name) for name in class_names) if names_shown else 4
    margin = 0.35 + min(longest, 24) * name_size / 72 * 0.62
    pairs = top_confusions(counts, class_names)
    pairs_width = 0.3 + 0.06 * max(map(len, pairs)) if pairs and num_classes > COUNTS_UP_TO else 0.0
    right = 0.75 + pairs_width
    width, height = margin + side + right, 0.45 + side + margin
    figure = blank(width, height)
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    # the square root keeps rare confusions visible beside a strong diagonal
    image = axes.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    if num_classes <= COUNTS_UP_TO:
        number_size = min(7.0, 0.3 * 72 * 1.5 / max(3, len(str(int(counts.max())))))
        for row, column in counts.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.4 else INK
            text = str(int(counts[row, column]))
            axes.text(column, row, text, ha="center", va="center", fontsize=number_size, color=colour)
    ticks = range(num_classes) if names_shown else range(0, num_classes, -(-num_classes // 10))
    names = [shorten(class_names[k]) if names_shown else str(k) for k in ticks]
    axes.set_xticks(ticks, names, rotation=90 if longest > 2 else 0, fontsize=name_size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=name_size, parse_math=False)
    axes.tick_params(length=0 if names_shown else 2, pad=2)
    axes.set_xlabel("predicted class", fontsize=8)
    axes.set_ylabel("true class", fontsize=8)
    for spine in axes.spines.values():
        spine.set(linewidth=0.5, color=INK)
    right_samples, samples = int(counts.diagonal().sum()), int(counts.sum())
    title = f"Confusion matrix, {split}: {right_samples} of {samples} right ({right_samples / max(samples, 1):.2%})"
    figure.text(0.08 / width, 1 - 0.25 / height, title, fontsize=8, fontweight="bold", color=INK)
    bar = figure.add_axes(((margin + side + 0.12) / width, margin / height, 0.12 / width, side / height))
    figure.colorbar(image, cax=bar, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1], format="{x:g}")
    bar.tick_params(labelsize=6, length=2, width=0.5)
    bar.set_ylabel("share of the true class", fontsize=7)
    bar.spines[:].set_linewidth(0.5)
    if pairs_width:
        text = "Most frequent confusions\n\n" + "\n".join(pairs)
        place = ((margin + side + 0.9) / width, (margin + side) / height)
        figure.text(*place, text, fontsize=7, va="top", color=INK, linespacing=1.5, parse_math=False)
    return figure


def top_confusions(counts: Tensor, class_names: Sequence[str], limit: int = 20) -> list[str]:
    wrong = counts.clone().fill_diagonal_(0).flatten()
    cells = wrong.argsort(descending=True, stable=True)[:limit]
    pairs = ((int(wrong[cell]), *divmod(int(cell), len(class_names))) for cell in cells)
    return [f"{count}×  {shorten(class_names[i])} → {shorten(class_names[j])}" for count, i, j in pairs if count]


def shorten(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


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
        figures = {"confusion_matrix": draw_confusion(evidence.counts, info.class_names, split=split)}
        if evidence.mistakes:
            names = ["/".join(PurePath(name_of(mistake.index)).parts[-2:]) for mistake in evidence.mistakes]
            figures["worst_mistakes"] = draw_mistakes(evidence.mistakes, names, info, split=split)
        if evidence.samples:
            labels = [(info.class_names[label],) for label in evidence.samples]
            images = torch.stack(list(evidence.samples.values()))
            figures["attention"] = draw_attention_of(self.backbone, images, labels, info)
        return {f"{name}_{split}": figure for name, figure in figures.items() if figure is not None}

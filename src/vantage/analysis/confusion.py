"""The confusion matrix: counts of true against predicted classes, and its figure for any number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vantage.analysis.figures import INK, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTS_UP_TO = 25  # classes; beyond that a number does not fit its cell
NAMES_UP_TO = 110  # classes; beyond that names would overlap


def count_confusions(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """(classes, classes) counts: rows are true classes, columns predicted ones."""
    cells = labels.long().cpu() * num_classes + predictions.long().cpu()
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def draw_confusion(counts: Tensor, class_names: Sequence[str], *, title: str) -> Figure:
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

"""Legends: which colour is which class, of the classes that are shown and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vantage.analysis.confusion import shorten
from vantage.analysis.figures import DPI, INK, blank
from vantage.data.masks import IGNORE
from vantage.tasks.segmentation.paint import STRIPE_COLOUR
from vantage.tasks.segmentation.palette import IGNORE_COLOUR, Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ENTRIES = 30
ROW_INCHES = 0.15
SWATCH_INCHES = 0.11
CHARACTER_INCHES = 0.053  # at font size 6


@dataclass(frozen=True)
class Entry:
    """A name and its colour in 0..1; without one it is a remark."""

    text: str
    colour: tuple[float, ...] | None
    is_hatched: bool = False


def legend_of(masks: Sequence[np.ndarray], class_names: Sequence[str], palette: Palette) -> list[Entry]:
    """The classes that occur in the masks, in label order, of more than 30 the most frequent; last, what is ignored."""
    counts = sum((np.bincount(mask.ravel(), minlength=256) for mask in masks), np.zeros(256, np.int64))
    labels = [label for label in np.argsort(-counts, kind="stable").tolist() if counts[label] and label != IGNORE]
    entries = [
        Entry(shorten(class_names[label]), tuple(value / 255 for value in palette[label]))
        for label in sorted(labels[:MOST_ENTRIES])
    ]
    if len(labels) > MOST_ENTRIES:
        entries.append(Entry(f"+{len(labels) - MOST_ENTRIES} more", None))
    if counts[IGNORE]:
        entries.append(Entry("ignored", tuple(value / 255 for value in IGNORE_COLOUR), is_hatched=True))
    return entries


def layout(entries: Sequence[Entry], width: float) -> tuple[int, float]:
    """How many entries stand beside each other in that many inches, and how wide each is."""
    cell = SWATCH_INCHES + 0.2 + CHARACTER_INCHES * max((len(entry.text) for entry in entries), default=0)
    return max(1, int(width / cell)), cell


def legend_inches(entries: Sequence[Entry], width: float) -> float:
    return -(-len(entries) // layout(entries, width)[0]) * ROW_INCHES


def draw_legend(axes: Axes, entries: Sequence[Entry], left: float, top: float, width: float) -> None:
    """In axes whose unit is the inch, y downwards."""
    from matplotlib.patches import Rectangle

    columns, cell = layout(entries, width)
    for number, entry in enumerate(entries):
        row, column = divmod(number, columns)
        x, y = left + column * cell, top + row * ROW_INCHES
        if entry.colour is not None:
            swatch = Rectangle((x, y), SWATCH_INCHES, SWATCH_INCHES, facecolor=entry.colour, linewidth=0.4)
            swatch.set(edgecolor=np.array(STRIPE_COLOUR) / 255 if entry.is_hatched else INK)
            swatch.set_hatch("//////" if entry.is_hatched else None)
            axes.add_patch(swatch)
        axes.text(
            x + SWATCH_INCHES + 0.05, y + SWATCH_INCHES / 2, entry.text,
            fontsize=6, color=INK, va="center_baseline", parse_math=False,
        )  # fmt: skip


def legend_strip(entries: Sequence[Entry], width: int) -> np.ndarray:
    """The legend as a picture (h, width, 3), to be put under another one of that many pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    margin = 0.06
    inches = (width + 0.01) / DPI  # rounded down to pixels
    height = legend_inches(entries, inches - 2 * margin) + 2 * margin
    figure = blank(inches, height)
    axes = figure.add_axes((0, 0, 1, 1))
    draw_legend(axes, entries, margin, margin, inches - 2 * margin)
    axes.set(xlim=(0, inches), ylim=(height, 0))
    axes.axis("off")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

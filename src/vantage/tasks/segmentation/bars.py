"""The IoU of every class as bars, best first, beside its share of the pixels; legible from 2 to 255 classes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vantage.analysis.confusion import shorten
from vantage.analysis.figures import INK, blank
from vantage.tasks.segmentation.palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS_UP_TO = 50  # classes below each other; then another column begins
MOST_COLUMNS = 3
ROW_INCHES = 0.15
BAR_INCHES = 1.9  # of an IoU of 1
VALUE_INCHES = 0.3
SHARE_INCHES = 0.6
FOOT_INCHES = 0.4
HEAD_INCHES = 0.55
CHARACTER_INCHES = 0.055  # at font size 6
FAINT = "#777777"


def draw_per_class(
    iou: np.ndarray,
    pixels: np.ndarray,
    class_names: Sequence[str],
    palette: Palette,
    *,
    absent: Collection[int],
    mean: float,
    title: str,
) -> Figure:
    """iou (K,) in 0..1, NaN where undefined; pixels (K,) true ones. Classes in `absent` or without an IoU come last."""
    iou = np.array(iou, float)
    iou[list(absent)] = np.nan
    shares = np.asarray(pixels, float) / max(float(np.sum(pixels)), 1.0)
    order = np.lexsort((-shares, -iou))  # NaN last
    columns = min(-(-len(order) // ROWS_UP_TO), MOST_COLUMNS)
    rows = -(-len(order) // columns)
    names = [shorten(name) for name in class_names]
    margin = 0.2 + CHARACTER_INCHES * max(map(len, names))
    step = margin + BAR_INCHES + VALUE_INCHES + SHARE_INCHES
    width = max(columns * step + 0.1, 0.068 * len(title) + 0.16)
    height = HEAD_INCHES + rows * ROW_INCHES + FOOT_INCHES
    figure = blank(width, height)
    figure.text(0.08 / width, 1 - 0.25 / height, title, fontsize=8, fontweight="bold", color=INK, parse_math=False)
    for column in range(columns):
        shown = order[column * rows : (column + 1) * rows]
        bottom = FOOT_INCHES + (rows - len(shown)) * ROW_INCHES
        place = (column * step + margin, bottom, BAR_INCHES + VALUE_INCHES, len(shown) * ROW_INCHES)
        axes = figure.add_axes([inches / page for inches, page in zip(place, (width, height) * 2)])
        draw_column(axes, iou[shown], shares[shown], [names[k] for k in shown], [palette[k] for k in shown], mean)
    return figure


def draw_column(
    axes: Axes, iou: np.ndarray, shares: np.ndarray, names: Sequence[str], colours: Palette, mean: float
) -> None:
    most = 1 + VALUE_INCHES / BAR_INCHES
    share_place = most + SHARE_INCHES * 0.85 / BAR_INCHES
    places = np.arange(len(iou))
    axes.barh(places, np.nan_to_num(iou), 0.72, color=np.array(colours) / 255, edgecolor=INK, linewidth=0.4)
    axes.axvline(mean, color=INK, linewidth=0.8, linestyle="--", zorder=3)
    for place, value, share in zip(places, iou, shares):
        is_absent = bool(np.isnan(value))
        axes.text(
            0.015 + (0.0 if is_absent else value), place, "absent" if is_absent else f"{value:.3f}",
            color=FAINT if is_absent else INK, style="italic" if is_absent else "normal",
            bbox={"facecolor": "white", "pad": 0.2, "linewidth": 0}, zorder=4,
            fontsize=5.5, va="center_baseline",
        )  # fmt: skip
        axes.text(share_place, place, percent(share), fontsize=5.5, va="center_baseline", ha="right", color=INK)
    axes.text(share_place, -0.85, "pixels", fontsize=5.5, ha="right", color=FAINT)
    axes.set(xlim=(0, most), ylim=(len(iou) - 0.5, -0.5))
    axes.set_yticks(places, names, fontsize=6, parse_math=False)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"], fontsize=6)
    axes.set_xlabel("IoU", fontsize=7, labelpad=2)
    axes.grid(axis="x", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", length=2, width=0.5)
    axes.tick_params(axis="y", length=0, pad=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set(linewidth=0.5, color=INK)


def percent(share: float) -> str:
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"

"""Sheets of pictures of any shape in rows, each with a caption, over one legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vantage.analysis.figures import GAP_INCHES, HEADER_INCHES, INK, blank, fit
from vantage.tasks.segmentation.legend import Entry, draw_legend, legend_inches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION_INCHES = 0.14
NARROWEST_CELL = 1.9  # inches: a caption needs them
LONGEST_SIDE = 3.4


@dataclass(frozen=True)
class Cell:
    image: np.ndarray  # uint8 (H, W, 3)
    caption: str


def cell_size(image: np.ndarray, area: float) -> tuple[float, float]:
    """(width, height) in inches: pictures of all shapes get the same area, as far as their longer side allows."""
    height, width = image.shape[:2]
    scale = min(math.sqrt(area / (height * width)), LONGEST_SIDE / max(height, width))
    return width * scale, height * scale


def draw_sheet(rows: Sequence[Sequence[Cell]], entries: Sequence[Entry], *, title: str, area: float = 4.6) -> Figure:
    """`area` is that of a picture, in square inches."""
    sizes = [[cell_size(cell.image, area) for cell in row] for row in rows]
    cell_width = max(NARROWEST_CELL, *(width for row in sizes for width, _ in row))
    columns = max(map(len, rows))
    # as wide as the title needs: about 0.068 inches per character at font size 8
    page_width = max(columns * (cell_width + GAP_INCHES) + GAP_INCHES, 0.068 * len(title) + 2 * GAP_INCHES)
    row_heights = [CAPTION_INCHES + max(height for _, height in row) + GAP_INCHES for row in sizes]
    legend_top = HEADER_INCHES + sum(row_heights) + GAP_INCHES
    legend_width = page_width - 2 * GAP_INCHES
    page_height = legend_top + legend_inches(entries, legend_width) + GAP_INCHES
    figure = blank(page_width, page_height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.text(GAP_INCHES, 0.21, title, fontsize=8, color=INK, fontweight="bold", parse_math=False)
    top = HEADER_INCHES
    for row, row_sizes, row_height in zip(rows, sizes, row_heights):
        for column, (cell, (width, height)) in enumerate(zip(row, row_sizes)):
            left, upper = GAP_INCHES + column * (cell_width + GAP_INCHES), top + CAPTION_INCHES
            caption = fit(cell.caption, cell_width)
            axes.text(left, upper - 0.035, caption, fontsize=6, color=INK, parse_math=False)
            extent = (left, left + width, upper + height, upper)
            axes.imshow(cell.image, extent=extent, aspect="auto", interpolation="auto")
        top += row_height
    draw_legend(axes, entries, GAP_INCHES, legend_top, legend_width)
    axes.set(xlim=(0, page_width), ylim=(page_height, 0))
    axes.axis("off")
    return figure

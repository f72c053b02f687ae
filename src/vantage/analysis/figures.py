"""Small figures with one look: canvases, rows of image tiles with captions, saving.

Built on matplotlib's object interface: no pyplot, so no global state, no display, and half the import time.
matplotlib is imported when the first figure is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
INK = "#222222"
WRONG = "#b2182b"
RIGHT = "#1b7837"
CAPTION_INCHES = 0.125  # height of a caption line of font size 6
GAP_INCHES = 0.08
HEADER_INCHES = 0.32


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet: (H, W, 3) in [0, 1], caption lines above it, points (x, y, marker) in its pixels."""

    image: np.ndarray
    caption: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    points: tuple[tuple[float, float, str], ...] = ()


def blank(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def save(figure: Figure, path: Path | str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def draw_tiles(tiles: Sequence[Tile], *, columns: int, title: str, tile_inches: float = 1.05) -> Figure:
    """A sheet of pictures in rows, all in one axes whose unit is the inch: an axes per picture is 20 times slower."""
    height, width = tiles[0].image.shape[:2]
    tile_height = tile_inches * height / width
    lines = max(len(tile.caption) for tile in tiles)
    step_x = tile_inches + GAP_INCHES
    step_y = lines * CAPTION_INCHES + tile_height + GAP_INCHES
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    # as wide as the title needs: about 0.068 inches per character at font size 8
    page_width = max(columns * step_x + GAP_INCHES, 0.068 * len(title) + 2 * GAP_INCHES)
    page_height = HEADER_INCHES + rows * step_y + GAP_INCHES
    figure = blank(page_width, page_height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.text(GAP_INCHES, 0.21, title, fontsize=8, color=INK, fontweight="bold")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        left = GAP_INCHES + column * step_x
        top = HEADER_INCHES + row * step_y + lines * CAPTION_INCHES
        draw_tile(axes, tile, left, top, tile_inches, tile_height)
    axes.set(xlim=(0, page_width), ylim=(page_height, 0))
    axes.axis("off")
    return figure


def draw_tile(axes: Axes, tile: Tile, left: float, top: float, width: float, height: float) -> None:
    extent = (left, left + width, top + height, top)
    axes.imshow(tile.image.clip(0, 1), extent=extent, aspect="auto", interpolation="auto")
    colours = tile.colours or (INK,) * len(tile.caption)
    for line, (text, colour) in enumerate(zip(tile.caption, colours)):
        baseline = top - (len(tile.caption) - line - 1) * CAPTION_INCHES - 0.035
        axes.text(left, baseline, fit(text, width), fontsize=6, color=colour, parse_math=False)
    image_height, image_width = tile.image.shape[:2]
    for x, y, marker in tile.points:
        axes.plot(
            left + (x + 0.5) * width / image_width,
            top + (y + 0.5) * height / image_height,
            marker=marker,
            markersize=5,
            markerfacecolor="none",
            markeredgecolor="#00e5ff",
            markeredgewidth=1.2,
        )


def fit(text: str, inches: float) -> str:
    """The text, its middle cut out where it is too long for that many inches at font size 6."""
    room = int(inches / 0.053)
    if len(text) <= room:
        return text
    head = (room - 1) // 2
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"

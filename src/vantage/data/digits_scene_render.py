"""Draws scenes: handwritten digits at any angle on textured, cluttered canvases, with exact rotated boxes and masks.

A scene is made of, from back to front: a background, clutter, strokes that are no digits, a texture over all of these,
digits, occluders, shadows, noise. Every scene depends on (seed, split, index) alone, not on how many are drawn.

A digit's ink is where the scan, upsampled smoothly, exceeds INK; its box is the tight one around that ink along the
digit's own axes, measured on the upsampled scan where the level is crossed and not on the scan's cell.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vantage.data.digits_scene_paint import LUMA, ink_colour, occlude, paint_background, shadows
from vantage.data.masks import IGNORE
from vantage.ops.rotated_boxes import canonical

INK = 0.48  # of a cell of the scan full of ink: the level at which paper ends
BLOCK = 20  # scenes: each block of so many has the same number of empty, occluded and large ones
EMPTY, LARGE, OCCLUDED = 1, 1, 15  # of a block
TILE = 160
LARGE_SIDES = (192, 288)
DIGITS = (3, 8)
SIDE = (20.0, 44.0)  # pixels of the box's long side
MIN_CONTRAST = 0.2
MIN_VISIBLE, MIN_SIDE = 0.4, 8.0  # below, a digit is difficult

PAD, FACTOR = 2, 8  # cells of paper around a scan; upsampling


@dataclass(frozen=True)
class Scene:
    image: Tensor  # uint8 (3, H, W)
    mask: Tensor  # uint8 (H, W): 0 background, 1 + label, 255 occluder
    boxes: Tensor  # float32 (N, 5), canonical
    labels: Tensor  # int64 (N,)
    difficult: Tensor  # bool (N,)
    visible: Tensor  # float32 (N,): share of the ink inside the canvas and under nothing
    contrast: Tensor  # float32 (N,): of luma 0..1 between the visible ink and what was there before
    scans: Tensor  # int64 (N,): ids of the scans
    strokes: int  # that are no digits
    occluders: int


@dataclass
class Glyphs:
    """Scans ready to be drawn. fields: float32 (n, 1, S, S); extents: (n, 4) left, top, right, bottom of the ink in
    cells from the field's centre."""

    scans: np.ndarray  # (n, 8, 8), 0..16
    labels: np.ndarray  # (n,)
    ids: np.ndarray  # (n,) among all scans
    fields: Tensor = field(init=False)
    extents: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        cells = F.pad(torch.from_numpy(self.scans).float()[:, None] / 16, [PAD] * 4)
        side = cells.shape[-1] * FACTOR
        self.fields = F.interpolate(cells, size=(side, side), mode="bicubic", align_corners=False)
        levels = self.fields[:, 0].numpy()
        across, down = _extent(levels.max(1)), _extent(levels.max(2))
        # in cells, from the centre of the field
        self.extents = np.stack([across[0], down[0], across[1], down[1]], 1) / FACTOR - cells.shape[-1] / 2


def _extent(profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where profiles (n, S) first rise above INK and last fall below it, linear between samples, in samples."""
    rows, above = np.arange(len(profile)), profile >= INK
    first, last = above.argmax(1), above.shape[1] - 1 - above[:, ::-1].argmax(1)

    def crossing(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
        low, high = profile[rows, outer], profile[rows, inner]
        return 0.5 + outer + (inner - outer) * (INK - low) / (high - low)

    return crossing(first - 1, first), crossing(last + 1, last)


def draw_scenes(glyphs: Glyphs, count: int, *, seed: int, split: int) -> list[Scene]:
    plans = [plan for block in range(-(-count // BLOCK)) for plan in _plans(seed, split, block)]
    return [
        _draw(glyphs, np.random.default_rng(np.random.SeedSequence([seed, split, index])), *plans[index])
        for index in range(count)
    ]


def _plans(seed: int, split: int, block: int) -> list[tuple[bool, bool, bool]]:
    """(is empty, is large, is occluded) of the scenes of a block."""
    order = np.random.default_rng(np.random.SeedSequence([seed, split, block, BLOCK])).permutation(BLOCK)
    place = order.tolist()
    occluded = set(place[EMPTY : EMPTY + OCCLUDED])  # of those with digits, so that there is something to hide
    return [(i in place[:EMPTY], i in place[-LARGE:], i in occluded) for i in range(BLOCK)]


def _draw(glyphs: Glyphs, rng: np.random.Generator, is_empty: bool, is_large: bool, is_occluded: bool) -> Scene:
    height, width = rng.integers(*LARGE_SIDES, 2, endpoint=True).tolist() if is_large else (TILE, TILE)
    canvas, strokes = paint_background(rng, height, width)
    count = 0 if is_empty else int(rng.integers(*DIGITS, endpoint=True))
    picked = rng.integers(len(glyphs.labels), size=count)
    boxes, scales = _place(glyphs, rng, picked, height, width)
    drawn, inks = _render(glyphs, picked, boxes, scales, height, width)

    before, owner = canvas.copy(), np.full((height, width), -1)
    for i in range(count):
        rows, columns, alpha, pressure, ink = drawn[i]
        colour = ink_colour(rng, canvas[rows, columns][ink] if ink.any() else canvas.reshape(-1, 3))
        opacity = (alpha * pressure * rng.uniform(0.95, 1.0))[..., None]
        canvas[rows, columns] += (colour - canvas[rows, columns]) * opacity
        owner[rows, columns][ink] = i
    covered = np.zeros((height, width), dtype=bool)
    targets = rng.permutation(count)[: 1 + (rng.random() < 0.35)] if is_occluded else []
    for target in targets:
        covered |= occlude(rng, canvas, boxes[target])
    shade = shadows(rng, height, width)
    canvas, before = canvas * shade, before * shade

    visible, contrast = np.zeros(count), np.zeros(count)
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[owner >= 0] = 1 + glyphs.labels[picked][owner[owner >= 0]]
    for i, (rows, columns, *_) in enumerate(drawn):
        seen = (owner[rows, columns] == i) & ~covered[rows, columns]
        visible[i] = seen.sum() / max(inks[i], 1)
        if seen.any():
            contrast[i] = abs(((canvas[rows, columns][seen] - before[rows, columns][seen]) @ LUMA).mean())
    mask[covered] = IGNORE

    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(0.01, 0.04))
    image = ((canvas + noise).clip(0, 1) * 255).round().astype(np.uint8)
    difficult = (visible < MIN_VISIBLE) | (boxes[:, 2:4].min(1, initial=math.inf) < MIN_SIDE)
    return Scene(
        torch.from_numpy(image).permute(2, 0, 1).contiguous(),
        torch.from_numpy(mask),
        canonical(torch.from_numpy(boxes)).float(),
        torch.from_numpy(glyphs.labels[picked]).long(),
        torch.from_numpy(difficult),
        torch.from_numpy(visible).float(),
        torch.from_numpy(contrast).float(),
        torch.from_numpy(glyphs.ids[picked]),
        strokes,
        len(targets),
    )


def _place(
    glyphs: Glyphs, rng: np.random.Generator, picked: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 5) in each digit's own axes, that hardly overlap, and pixels per cell along them (N, 2)."""
    count = len(picked)
    left, top, right, bottom = glyphs.extents[picked].T
    extents = np.stack([right - left, bottom - top], 1) * np.exp(rng.uniform(-0.12, 0.12, (count, 2)))  # (N, 2) cells
    sides = np.exp(rng.uniform(*np.log(SIDE), count))
    scales = (sides / extents.max(1))[:, None] * extents / np.stack([right - left, bottom - top], 1)
    sizes = (sides / extents.max(1))[:, None] * extents
    angles = rng.uniform(-math.pi, math.pi, count)
    reach = 0.45 * np.hypot(*sizes.T)
    centres = np.zeros((count, 2))
    done: list[int] = []
    for i in np.argsort(-sides).tolist():  # the largest first, while there is room
        cos, sin = abs(math.cos(angles[i])), abs(math.sin(angles[i]))
        half = sizes[i] @ np.array([[cos, sin], [sin, cos]]) / 2  # of the upright box around it
        margin = half * (0.2 if rng.random() < 0.12 else 1.0)  # some reach over the edge
        candidates = margin + rng.uniform(0, 1, (60, 2)) * (np.array([width, height]) - 2 * margin)
        gaps = np.linalg.norm(candidates[:, None] - centres[done], axis=2) - reach[done] - reach[i]  # (60, placed)
        centres[i] = candidates[gaps.min(1, initial=math.inf).clip(max=0).argmax()]
        done.append(i)
    return np.concatenate([centres, sizes, angles[:, None]], 1), scales


def _render(
    glyphs: Glyphs, picked: np.ndarray, boxes: np.ndarray, scales: np.ndarray, height: int, width: int
) -> tuple[list[tuple[slice, slice, np.ndarray, np.ndarray, np.ndarray]], list[int]]:
    """Per digit the rows and columns of the canvas it is in, and there its share of each pixel, its opacity and its
    ink; and its ink in pixels, those outside the canvas too."""
    if not len(picked):
        return [], []
    side = int(np.hypot(*boxes[:, 2:4].T).max()) + 4
    corners = np.floor(boxes[:, :2] - side / 2).astype(int)  # (N, 2) x, y of the patches
    offsets = corners[:, None] + 0.5 + np.arange(side)[:, None] - boxes[:, None, :2]  # (N, side, 2)
    x, y = offsets[:, None, :, 0], offsets[:, :, None, 1]
    cos, sin = np.cos(boxes[:, 4])[:, None, None], np.sin(boxes[:, 4])[:, None, None]
    middle = (glyphs.extents[picked, :2] + glyphs.extents[picked, 2:]) / 2  # cells
    u = (x * cos + y * sin) / scales[:, 0, None, None] + middle[:, 0, None, None]
    v = (y * cos - x * sin) / scales[:, 1, None, None] + middle[:, 1, None, None]
    grid = torch.from_numpy(np.stack([u, v], -1) / (4 + PAD)).float()  # the field reaches from -1 to 1
    level = F.grid_sample(glyphs.fields[picked], grid, align_corners=False)[:, 0].numpy()
    slope = 1.4 * scales.mean(1)[:, None, None]  # one pixel from paper to ink, by the usual steepness of a scan
    alpha = ((level - INK) * slope + 0.5).clip(0, 1)

    pressure = (0.6 + 0.5 * level).clip(0.85, 1.0)  # a faint line is fainter

    drawn = []
    for (left, top), opacity, faint, ink in zip(corners.tolist(), alpha, pressure, level >= INK):
        rows = slice(max(top, 0), max(min(top + side, height), 0))
        columns = slice(max(left, 0), max(min(left + side, width), 0))
        inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
        drawn.append((rows, columns, opacity[inside].astype(np.float32), faint[inside], ink[inside]))
    return drawn, (level >= INK).sum((1, 2)).tolist()

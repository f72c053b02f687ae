"""What is on a scene beside its digits: background, clutter, strokes, occluders, shadows, colours of ink.

Canvases are float32 (H, W, 3) in 0..1. Shapes are drawn by Pillow at twice the size and reduced.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
STROKES = (2, 5)
SCALE = 2  # of the canvas on which shapes are drawn


def paint_background(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, int]:
    """A canvas with clutter, strokes that are no digits, and a texture over both -> it, and the number of strokes."""
    base = (rng.uniform(0.15, 0.85) + tint(rng, 0.12)).clip(0.03, 0.97)
    cells = rng.integers(2, 7, 2)
    blotches = base + rng.normal(0, rng.uniform(0.01, 0.08), (*cells, 1)) + rng.normal(0, 0.02, (*cells, 3))
    image = Image.fromarray((blotches.clip(0, 1) * 255).astype(np.uint8))
    image = image.resize((width * SCALE, height * SCALE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 8))):
        size = rng.uniform(0.04, 0.35, 2) * min(height, width)
        centre = rng.uniform(0, 1, 2) * (width, height)
        colour = (base + rng.uniform(-0.22, 0.22) + tint(rng, 0.06)).clip(0, 1)
        draw_shape(draw, outline(rng, centre, size, rng.uniform(0, math.pi)), colour)
    strokes = int(rng.integers(*STROKES, endpoint=True))
    for _ in range(strokes):
        points = stroke(rng, height, width)
        colour = tuple((ink_colour(rng, base[None], (0.18, 0.5)) * 255).astype(int).tolist())
        draw.line([tuple(point) for point in (points * SCALE).tolist()], colour, round(rng.uniform(3, 9)), "curve")
    canvas = np.asarray(image.reduce(SCALE), dtype=np.float32) / 255
    return canvas + texture(rng, height, width)[..., None], strokes


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Luma (H, W) around 0: noise of two grain sizes, on some canvases stripes or a grid of lines."""
    total = np.zeros((height, width), dtype=np.float32)
    for grain in rng.choice([2, 3, 5, 9, 16], 2, replace=False).tolist():
        cells = rng.standard_normal((height // grain + 2, width // grain + 2), dtype=np.float32)
        cells *= np.float32(rng.uniform(0.01, 0.05))
        total += np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))
    kind, amplitude = rng.random(), rng.uniform(0.02, 0.09)
    if kind < 0.5:  # stripes, soft or hard
        phase = _phase(rng, height, width)
        total += amplitude * (np.sign(phase) if kind < 0.2 else phase)
    elif kind < 0.65:  # ruled paper
        total -= 2 * amplitude * (np.maximum(_phase(rng, height, width), _phase(rng, height, width)) > 0.93)
    return total


def _phase(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    angle, period = rng.uniform(0, math.pi), rng.uniform(5, 24)
    y, x = np.ogrid[:height, :width]
    wave = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period) + rng.uniform(0, 6.3)
    return np.sin(wave, dtype=np.float32)


def stroke(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Points (P, 2) of a curve or zigzag that is longer than a digit, so that it is none."""
    length = rng.uniform(0.4, 1.1) * min(height, width)
    along = np.linspace(-0.5, 0.5, 25) * length
    if rng.random() < 0.3:  # zigzag
        teeth = int(rng.integers(3, 7))
        along = np.linspace(-0.5, 0.5, teeth + 1) * length
        across = rng.uniform(4, 16) * np.where(np.arange(teeth + 1) % 2, 1, -1)
    else:
        waves = rng.uniform(0.3, 1.6)
        across = rng.uniform(0.03, 0.2) * length * np.sin(2 * math.pi * waves * along / length + rng.uniform(0, 6.3))
    return turned(np.stack([along, across], 1), rng.uniform(0, math.pi)) + rng.uniform(0, 1, 2) * (width, height)


def outline(rng: np.random.Generator, centre: np.ndarray, size: np.ndarray, angle: float) -> np.ndarray:
    """Corners (P, 2) of a rectangle, an ellipse or a ragged blob of (width, height) `size`."""
    kind = rng.random()
    if kind < 0.5:
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    else:
        around = np.linspace(0, 2 * math.pi, 20 if kind < 0.75 else 9, endpoint=False)
        radius = 0.5 if kind < 0.75 else rng.uniform(0.35, 0.65, 9)[:, None]
        points = radius * np.stack([np.cos(around), np.sin(around)], 1)
    return turned(points * size, angle) + centre


def occlude(rng: np.random.Generator, canvas: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Covers a part of a digit, in place -> what is covered, bool (H, W)."""
    height, width = canvas.shape[:2]
    side, angle = max(box[2:4]), rng.uniform(0, math.pi)
    size = np.array([rng.uniform(0.8, 2.2), rng.uniform(0.25, 0.6)]) * side
    away = [rng.uniform(-0.5, 0.5), rng.choice([-1, 1]) * rng.uniform(0.05, 0.48)]  # along it, across it
    offset = turned(np.array([away]) * side, angle)[0]
    layer = Image.new("L", (width * SCALE, height * SCALE))
    draw_shape(ImageDraw.Draw(layer), outline(rng, box[:2] + offset, size, angle), 255)
    alpha = np.asarray(layer.reduce(SCALE), dtype=np.float32)[..., None] / 255
    colour = (rng.uniform(0.1, 0.9) + tint(rng, 0.25)).clip(0.02, 0.98)
    canvas += alpha * (colour + texture(rng, height, width)[..., None] - canvas)
    return alpha[..., 0] >= 0.5


def shadows(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """What is left of the light, (H, W, 1) in 0.75..1: soft edges across the canvas, on most scenes."""
    light = np.ones((height, width), dtype=np.float32)
    for _ in range(int(rng.integers(0, 3))):
        layer = Image.new("L", (width // 4, height // 4))
        centre = rng.uniform(0, 1, 2) * (width, height) / 4
        size = rng.uniform(0.3, 1.2, 2) * min(height, width) / 4
        draw_shape(ImageDraw.Draw(layer), outline(rng, centre, size, rng.uniform(0, math.pi)), 255, scale=1)
        soft = layer.reduce(int(rng.integers(1, 4))).resize((width, height), Image.Resampling.BICUBIC)
        light *= 1 - np.asarray(soft, dtype=np.float32) / 255 * rng.uniform(0.08, 0.3)
    return light.clip(0.75, 1)[..., None]


def ink_colour(rng: np.random.Generator, paper: np.ndarray, contrast: tuple[float, float] = (0.38, 0.65)) -> np.ndarray:
    """A colour (3,) whose luma differs from that of the paper (P, 3), to either side where there is room."""
    luma = float((paper @ LUMA).mean())
    room = {-1: luma - 0.02, 1: 0.98 - luma}
    sides = [side for side in room if room[side] >= contrast[0]] or [max(room, key=room.get)]
    side = int(rng.choice(sides))
    wanted = luma + side * min(rng.uniform(*contrast), room[side])
    colour = (wanted + tint(rng, 0.2)).clip(0, 1)
    return (colour + wanted - float(colour @ LUMA)).clip(0, 1)  # what clipping took from the luma


def tint(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A change of colour (3,) that leaves the luma as it is."""
    shift = rng.uniform(-strength, strength, 3).astype(np.float32)
    return shift - shift @ LUMA


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Points (P, 2) turned around the origin, clockwise on the screen."""
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def draw_shape(draw: ImageDraw.ImageDraw, points: np.ndarray, colour: np.ndarray | int, scale: int = SCALE) -> None:
    fill = colour if isinstance(colour, int) else tuple((colour * 255).astype(int).tolist())
    draw.polygon([tuple(point) for point in (points * scale).tolist()], fill)

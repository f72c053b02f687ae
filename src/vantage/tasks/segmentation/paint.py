"""Masks as something to look at: resized, coloured, laid over the picture, compared. All arrays are uint8.

What is ignored is always hatched, for its colour may also be a class's.
"""

import numpy as np
from PIL import Image
from torch import Tensor

from vantage.data.info import DataInfo
from vantage.data.masks import IGNORE
from vantage.tasks.segmentation.palette import IGNORE_COLOUR, Palette, colourise

STRIPE_COLOUR = (140, 140, 140)
WRONG_COLOUR = (230, 40, 40)
NOT_SCORED = ((104, 120, 140), (150, 166, 186))  # blue-grey, and its stripes


def to_picture(image: Tensor, info: DataInfo) -> np.ndarray:
    """Normalised (C, H, W) -> (H, W, 3); one channel becomes grey; of more, the first three show."""
    picture = info.denormalize(image.detach().cpu())
    picture = picture[:3] if len(picture) >= 3 else picture[:1].expand(3, -1, -1)
    return (picture.permute(1, 2, 0) * 255).round().byte().numpy()


def shown_size(height: int, width: int, *, least: int, most: int) -> tuple[int, int]:
    """The size whose longer side lies within [least, most]: larger is reduced, tiny is multiplied by an integer."""
    longer = max(height, width)
    if longer > most:
        return max(1, round(height * most / longer)), max(1, round(width * most / longer))
    times = -(-least // longer) if longer < least else 1
    return height * times, width * times


def resize_picture(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) -> (*size, 3). Reducing averages; multiplied by an integer, pixels stay visible as squares."""
    height, width = picture.shape[:2]
    if (height, width) == tuple(size):
        return picture
    multiplies = size[0] % height == 0 and size[1] % width == 0
    how = Image.Resampling.NEAREST if multiplies else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), how))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) -> size, the nearest value: between two classes there is no third."""
    if mask.shape == tuple(size):
        return mask
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def stripes(height: int, width: int) -> np.ndarray:
    """bool (H, W): diagonals, a third of the pixels."""
    return (np.arange(height)[:, None] + np.arange(width)) % 9 < 3


def outlines(mask: np.ndarray) -> np.ndarray:
    """bool (H, W): the last pixel of a class before another one begins, to the right or below.

    What is ignored has none: it is hatched, and its narrow bands around objects would become three lines.
    """
    lines = np.zeros(mask.shape, bool)
    for here, there, line in ((mask[:, :-1], mask[:, 1:], lines[:, :-1]), (mask[:-1], mask[1:], lines[:-1])):
        line |= (here != there) & (here != IGNORE) & (there != IGNORE)
    return lines


def paint_labels(mask: np.ndarray, palette: Palette) -> np.ndarray:
    """The mask (H, W) in its colours, (H, W, 3)."""
    painted = colourise(mask, palette)
    painted[(mask == IGNORE) & stripes(*mask.shape)] = STRIPE_COLOUR
    return painted


def paint_overlay(picture: np.ndarray, mask: np.ndarray, palette: Palette, *, alpha: float = 0.5) -> np.ndarray:
    """The picture (H, W, 3) tinted with the colours of a mask (H, W), and its outlines in white.

    Black tints nothing: it is the background's colour, and what lies there would be hard to see. Where a pixel is to
    be ignored the picture stays too, hatched.
    """
    colours = colourise(mask, palette)
    ignored = mask == IGNORE
    tinted = colours.any(-1) & ~ignored
    painted = picture.copy()
    painted[tinted] = ((1 - alpha) * picture[tinted] + alpha * colours[tinted]).round()
    painted[ignored & stripes(*mask.shape)] = IGNORE_COLOUR
    painted[outlines(mask)] = 255
    return painted


def paint_errors(picture: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(H, W, 3): the picture in dim grey where the prediction is right, red where it is wrong, hatched if ignored."""
    grey = np.asarray(Image.fromarray(picture).convert("L"))
    painted = (0.45 * grey[..., None].repeat(3, -1) + 20).astype(np.uint8)
    ignored = truth == IGNORE
    painted[(truth != prediction) & ~ignored] = WRONG_COLOUR
    painted[ignored] = NOT_SCORED[0]
    painted[ignored & stripes(*truth.shape)] = NOT_SCORED[1]
    return painted

"""Points of pictures at which masks are compared: where they lie, what a mask's logit and the picture's class is there.

Paper: PointRend: Image Segmentation as Rendering (Kirillov et al., 2020), arXiv:1912.08193, section 3.1, training:
of OVERSAMPLE times as many random points the most uncertain ones, those with the smallest |logit|, and some at random.
Points are (x, y) in [0, 1] over the picture, whatever the size of a map of it.
Departs from the authors' code: a logit within half a pixel of the border is the border's, where the code blends it
with zeros outside; the class is that of the pixel a point lies in, never a blend of two; ignored pixels, which it does
not know, are the last to count as uncertain: training would otherwise look mostly where it never learns anything.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vantage.data.masks import IGNORE

OVERSAMPLE = 3  # candidates per point
IMPORTANCE = 0.75  # of the points are the most uncertain of the candidates


def random_points(num_maps: int, num_points: int, device: torch.device) -> Tensor:
    """(num_maps, num_points, 2)."""
    return torch.rand(num_maps, num_points, 2, device=device)


def logits_at(maps: Tensor, points: Tensor) -> Tensor:
    """maps (N, h, w), points (N, P, 2) -> (N, P), bilinear."""
    grid = (2 * points - 1)[:, None]
    return F.grid_sample(maps[:, None], grid, padding_mode="border", align_corners=False)[:, 0, 0]


def classes_at(masks: Tensor, image: Tensor, points: Tensor) -> Tensor:
    """masks (B, H, W) uint8, image (N,) indices into them, points (N, P, 2) -> (N, P) uint8."""
    height, width = masks.shape[-2:]
    columns = (points[..., 0] * width).long().clamp(0, width - 1)
    rows = (points[..., 1] * height).long().clamp(0, height - 1)
    return masks[image[:, None], rows, columns]


@torch.no_grad()
def choose_points(maps: Tensor, masks: Tensor, image: Tensor, num_points: int) -> Tensor:
    """maps (N, h, w) of logits, masks (B, H, W) uint8, image (N,) indices into them -> (N, num_points, 2)."""
    num_uncertain = int(IMPORTANCE * num_points)
    candidates = random_points(len(maps), OVERSAMPLE * num_points, maps.device)
    certainty = logits_at(maps, candidates).abs()
    certainty = certainty.masked_fill(classes_at(masks, image, candidates) == IGNORE, torch.inf)
    nearest = certainty.topk(num_uncertain, largest=False, sorted=False).indices  # (N, num_uncertain)
    uncertain = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
    return torch.cat([uncertain, random_points(len(maps), num_points - num_uncertain, maps.device)], 1)

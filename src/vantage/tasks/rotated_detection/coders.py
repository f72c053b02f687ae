"""How a head's numbers become boxes, and back: deltas against rotated anchors, midpoint offsets against upright ones.

Boxes are (..., 5) = (cx, cy, w, h, angle_rad), clockwise, le90; upright boxes (..., 4) = (x1, y1, x2, y2).
"""

import math

import torch
from torch import Tensor

from vantage.ops.rotated_boxes import canonical, to_corners

MAX_LOG = abs(math.log(0.016))  # of a predicted change of size: exp of an untrained number overflows


def wrap(angle: Tensor) -> Tensor:
    """The same line's angle in [-pi/2, pi/2)."""
    return (angle + math.pi / 2) % math.pi - math.pi / 2


class DeltaCoder:
    """(dx, dy, dw, dh, da): the centre in the anchor's own frame over its sides, log ratios of sides, turn in radians.

        (dx w_a, dy h_a) = R(-angle_a) (c - c_a),  dw = ln(w / w_a),  dh = ln(h / h_a),  da = angle - angle_a
    With swap_edges, of the two ways to write the box that with w and h swapped is taken where it turns less. Source:
    RoI Transformer (Ding et al., 2019), arXiv:1812.00155, with the edge swap of mmrotate.
    """

    def __init__(
        self, stds: tuple[float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0), *, swap_edges: bool = True
    ):
        self.stds = stds
        self.swap_edges = swap_edges

    def encode(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """anchors, boxes (..., 5) -> deltas (..., 5)."""
        centre = boxes[..., :2] - anchors[..., :2]
        cos, sin = anchors[..., 4].cos(), anchors[..., 4].sin()
        dx = (centre[..., 0] * cos + centre[..., 1] * sin) / anchors[..., 2]
        dy = (centre[..., 1] * cos - centre[..., 0] * sin) / anchors[..., 3]
        turn = wrap(boxes[..., 4] - anchors[..., 4])
        quarter = wrap(turn + math.pi / 2)
        swap = (quarter.abs() < turn.abs()) & self.swap_edges
        width = torch.where(swap, boxes[..., 3], boxes[..., 2])
        height = torch.where(swap, boxes[..., 2], boxes[..., 3])
        ratios = (width / anchors[..., 2], height / anchors[..., 3])
        dw, dh = (ratio.clamp(min=1e-6).log() for ratio in ratios)
        deltas = torch.stack([dx, dy, dw, dh, torch.where(swap, quarter, turn)], -1)
        return deltas / deltas.new_tensor(self.stds)

    def decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        """anchors, deltas (..., 5) -> boxes (..., 5), not yet canonical."""
        dx, dy, dw, dh, turn = (deltas * deltas.new_tensor(self.stds)).unbind(-1)
        x, y, width, height, angle = anchors.unbind(-1)
        dx, dy = dx * width, dy * height
        cos, sin = angle.cos(), angle.sin()
        sides = (width * dw.clamp(-MAX_LOG, MAX_LOG).exp(), height * dh.clamp(-MAX_LOG, MAX_LOG).exp())
        return torch.stack([x + dx * cos - dy * sin, y + dx * sin + dy * cos, *sides, angle + turn], -1)


class MidpointOffsetCoder:
    """(dx, dy, dw, dh, da, db): the circumscribed upright box as deltas, and where the box touches its top and right.

        da = (x of the topmost corner - cx) / w,  db = (y of the rightmost corner - cy) / h,  both in [-1/2, 1/2]
    Decoding gives a parallelogram; its half-diagonals are stretched to the longer one, which makes it a rectangle.
    Source: Oriented R-CNN (Xie et al., 2021), arXiv:2108.05699, sections 3.1 and 3.2.
    """

    def __init__(self, stds: tuple[float, float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 0.5, 0.5)):
        self.stds = stds

    def encode(self, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Upright anchors (N, 4), boxes (N, 5) -> deltas (N, 6)."""
        corners = to_corners(boxes)  # (N, 4, 2)
        low, high = corners.amin(-2), corners.amax(-2)
        centre, size = (low + high) / 2, (high - low).clamp(min=1e-6)
        top, right = corners[..., 1].argmin(-1, keepdim=True), corners[..., 0].argmax(-1, keepdim=True)
        touching = torch.cat([corners[..., 0].gather(-1, top), corners[..., 1].gather(-1, right)], -1)
        offsets = (touching - centre) / size
        # an upright box touches with whole edges: the right end of the top one and the lower end of the right one,
        # both chosen together, for the other mixtures describe its diagonal
        tilt = torch.minimum(boxes[..., 4].sin().abs(), boxes[..., 4].cos().abs())
        offsets = torch.where((tilt < 1e-3)[..., None], 0.5, offsets)
        anchor_centre, anchor_size = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
        shift = (centre - anchor_centre) / anchor_size
        scale = (size / anchor_size).log()
        deltas = torch.cat([shift, scale, offsets], -1)
        return deltas / deltas.new_tensor(self.stds)

    def decode(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        """Upright anchors (N, 4), deltas (N, 6) -> canonical boxes (N, 5)."""
        deltas = deltas * deltas.new_tensor(self.stds)
        anchor_centre, anchor_size = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
        centre = anchor_centre + deltas[..., :2] * anchor_size
        size = anchor_size * deltas[..., 2:4].clamp(-MAX_LOG, MAX_LOG).exp()
        offsets = deltas[..., 4:].clamp(-0.5, 0.5) * size
        half = size / 2
        top = torch.stack([offsets[..., 0], -half[..., 1]], -1)
        right = torch.stack([half[..., 0], offsets[..., 1]], -1)
        lengths = torch.stack([top.norm(dim=-1), right.norm(dim=-1)], -1).clamp(min=1e-6)  # (N, 2)
        stretch = lengths.amax(-1, keepdim=True) / lengths
        top, right = top * stretch[..., :1], right * stretch[..., 1:]
        edge, side = right - top, right + top  # the corners are top, right, -top, -right
        width, height = edge.norm(dim=-1), side.norm(dim=-1)
        # of a sliver one edge has no direction: take the longer one's
        along = torch.where((width >= height)[..., None], edge, torch.stack([side[..., 1], -side[..., 0]], -1))
        angle = torch.atan2(along[..., 1], along[..., 0])
        return canonical(torch.cat([centre, torch.stack([width, height, angle], -1)], -1))

"""Which ground truth an anchor or a region belongs to, by overlap, and the drawing of a sample of them."""

from collections.abc import Callable

import torch
from torch import Tensor

BACKGROUND, IGNORED = -1, -2
PAIRS = 2**24  # anchors times boxes whose overlaps are held at a time


@torch.no_grad()
def assign_by_overlap(
    anchors: Tensor,
    boxes: Tensor,
    difficult: Tensor,
    *,
    overlap: Callable[[Tensor, Tensor], Tensor],
    covered: Callable[[Tensor, Tensor], Tensor],
    positive: float,
    negative: float,
    low_quality: bool,
) -> Tensor:
    """(anchors,) int64: the index in `boxes` (of one image) of each anchor's ground truth, BACKGROUND or IGNORED.

    overlap, covered   (anchors, boxes) -> (A, N): IoU, and the share of the anchor inside the box
    Positive at IoU >= `positive` with the box it overlaps most, background below `negative`, ignored between. With
    low_quality each box also gets the anchors that overlap it most, however little. Difficult boxes get none; what
    would be theirs, and what lies to more than half inside one, is ignored.
    """
    assigned = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    if not len(anchors) or not len(boxes):
        return assigned
    best = torch.zeros(len(anchors), device=anchors.device)
    nearest = torch.full_like(assigned, BACKGROUND)
    low = torch.full_like(assigned, BACKGROUND)
    at_a_time = max(1, PAIRS // len(anchors))
    for index in in_parts(~difficult, at_a_time):
        shares = overlap(anchors, boxes[index]).float()
        most, which = shares.max(1)
        better = most > best
        best, nearest = torch.where(better, most, best), torch.where(better, index[which], nearest)
        if low_quality:
            best_of_box = shares.amax(0)
            is_best = (shares == best_of_box) & (best_of_box > 0)
            low = torch.maximum(low, torch.where(is_best, index, BACKGROUND).amax(1))
    assigned[best >= negative] = IGNORED
    for index in in_parts(difficult, at_a_time):
        near = (overlap(anchors, boxes[index]) >= negative) | (covered(anchors, boxes[index]) > 0.5)
        assigned[near.any(1)] = IGNORED
    assigned = torch.where(best >= positive, nearest, assigned)
    return torch.where(low >= 0, low, assigned)


def in_parts(chosen: Tensor, at_a_time: int) -> list[Tensor]:
    """Indices of the chosen ones in tensors of at most that many; none where nothing is chosen."""
    index = chosen.nonzero()[:, 0]
    return list(index.split(at_a_time)) if len(index) else []


def draw_sample(assigned: Tensor, number: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Random indices of positives, at most their share of `number`, and of background for the rest of it."""
    positives = (assigned >= 0).nonzero()[:, 0]
    background = (assigned == BACKGROUND).nonzero()[:, 0]
    wanted = min(len(positives), int(number * positive_share))
    positives = positives[torch.randperm(len(positives), device=positives.device)[:wanted]]
    rest = torch.randperm(len(background), device=background.device)[: number - wanted]
    return positives, background[rest]


def upright_overlap(a: Tensor, b: Tensor, *, share_of_first: bool = False) -> Tensor:
    """IoU (N, M) of upright boxes (N, 4) and (M, 4), or the share of the first inside the second."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    areas = (a[:, 2:] - a[:, :2]).prod(-1)[:, None]
    whole = areas if share_of_first else areas + (b[:, 2:] - b[:, :2]).prod(-1) - inside
    return inside / whole.clamp(min=1e-6)

"""The ops of rotated boxes in plain PyTorch: the definition, on any device that has float64, in bounded memory.

In the frame of box A, where A is |x| <= a, |y| <= b, the area of A and B in common is a sum over the four edges of B:
    I = sum over edges of  integral over x of clamp(y(x), -b, b),  x along the edge clamped to [-a, a]
since at every x the height in common is clamp(top of B) - clamp(bottom of B). Every term is continuous in the boxes and
at most |A| / 2: coincident and nearly parallel edges, where lists of intersection points go wrong, are no special case.
Gradients come from autograd (any number of times); minimum and maximum halve them where two values are equal.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vantage.ops.rotated_boxes.boxes import SIGNS_H, SIGNS_W

SMALLEST_UNION = 1e-30  # below it boxes have no area to speak of: their IoU is 0
ROUNDING = 1e-14  # of A's area: what is in common below that is rounding, and the boxes are apart
CHUNK_DISTANCES = 1 << 20  # pairs whose circumscribed circles are compared at once
CHUNK_PAIRS = 1 << 16  # pairs whose overlap is computed at once
NMS_BLOCK = 256
CHUNK_SAMPLES = 1 << 22  # values that RoI align samples at once


def unavailable(device: str) -> str | None:
    """Why a call with tensors there cannot run, and what to do about it; None where it can."""
    if device == "mps":
        return "Apple's GPUs have no float64; move the boxes to the CPU"
    return None


def rotated_iou(a: Tensor, b: Tensor, aligned: bool, is_iof: bool) -> Tensor:
    dtype, a, b = a.dtype, a.double(), b.double()
    if aligned:
        return aligned_ratio(a, b, is_iof).to(dtype)
    rows = max(1, CHUNK_DISTANCES // max(1, b.shape[0]))
    chunks = [pairwise_ratio(chunk, b, is_iof, dtype) for chunk in a.split(rows)]
    return torch.cat(chunks) if chunks else a.new_zeros(0, b.shape[0], dtype=dtype)


def pairwise_ratio(a: Tensor, b: Tensor, is_iof: bool, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        pairs = may_overlap(a, b).nonzero()
    out = torch.zeros(a.shape[0], b.shape[0], dtype=dtype, device=a.device)
    ratios = [aligned_ratio(a[i], b[j], is_iof).to(dtype) for i, j in (p.unbind(1) for p in pairs.split(CHUNK_PAIRS))]
    return out.index_put(pairs.unbind(1), torch.cat(ratios))


def may_overlap(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) bool: False where the circumscribed circles are apart, True with NaN."""
    radius_a, radius_b = (boxes[:, 2:4].clamp(min=0).norm(dim=1) / 2 for boxes in (a, b))
    offset = b[:, :2] - a[:, None, :2]
    poison = 0 * b.sum(1) + 0 * a.sum(1)[:, None]
    return ~(offset.square().sum(-1) > (radius_b + radius_a[:, None]).square() + poison)


def aligned_ratio(a: Tensor, b: Tensor, is_iof: bool) -> Tensor:
    """(N, 5), (N, 5) float64 -> (N,) IoU or IoF."""
    common = intersection_area(a, b)
    # 0 * sum: NaN for a box that is not finite
    area_a, area_b = (boxes[:, 2].clamp(min=0) * boxes[:, 3].clamp(min=0) + 0 * boxes.sum(1) for boxes in (a, b))
    denominator = area_a + 0 * area_b if is_iof else area_a + area_b - common
    has_none = denominator <= SMALLEST_UNION
    ratio = common / torch.where(has_none, 1.0, denominator)
    return torch.where(has_none, 0.0, ratio).clamp(max=1)


def intersection_area(a: Tensor, b: Tensor) -> Tensor:
    """(N, 5), (N, 5) float64 -> (N,)."""
    offset_x, offset_y = (b[:, :2] - a[:, :2]).unsqueeze(-1).unbind(1)  # (N, 1)
    a_w, a_h, b_w, b_h = (boxes[:, k : k + 1].clamp(min=0) for boxes in (a, b) for k in (2, 3))
    cos_a, sin_a = a[:, 4:].cos(), a[:, 4:].sin()
    turn = b[:, 4:] - a[:, 4:]
    along, across = b_w * b.new_tensor(SIGNS_W), b_h * b.new_tensor(SIGNS_H)  # (N, 4)
    x = cos_a * offset_x + sin_a * offset_y + along * turn.cos() - across * turn.sin()
    y = cos_a * offset_y - sin_a * offset_x + along * turn.sin() + across * turn.cos()
    area = edge_integrals(x, y, x.roll(-1, 1), y.roll(-1, 1), a_w / 2, a_h / 2).sum(1)
    return torch.where(area > ROUNDING * (a_w * a_h)[:, 0], area, 0)


def edge_integrals(x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(N, 4) each, a and b (N, 1): minus the integral of clamp(y, -b, b) dx along the edges within |x| <= a. Minus,
    since corners run from x towards y."""
    start_x, end_x = between(x0, -a, a), between(x1, -a, a)
    start = y0 + fraction(start_x - x0, x1 - x0) * (y1 - y0)
    end = y1 - fraction(x1 - end_x, x1 - x0) * (y1 - y0)
    # mean of clamp(y) over a straight line from start to end: that of its ends, more of the end where it stays longer
    first, last, rise = between(start, -b, b), between(end, -b, b), end - start
    mean = (first + last + (last - first) * (fraction(end - last, rise) - fraction(first - start, rise))) / 2
    return (start_x - end_x) * mean


def between(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(value, low), high)


def fraction(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole in [0, 1]; 0 where whole is 0."""
    return (part / torch.where(whole == 0, 1.0, whole)).clamp(0, 1)


def rotated_nms(boxes: Tensor, labels: Tensor | None, iou_threshold: float) -> Tensor:
    """Boxes in the order of their scores -> (N,) bool, which stay. A block is compared with the boxes that stayed
    before it, then with itself."""
    keep = torch.zeros(boxes.shape[0], dtype=torch.bool, device=boxes.device)

    def removes(first: Tensor, second: Tensor) -> Tensor:
        """(N, M) bool of indices."""
        above = rotated_iou(boxes[first].double(), boxes[second].double(), False, False) > iou_threshold
        return above if labels is None else above & (labels[first, None] == labels[second])

    for block in torch.arange(boxes.shape[0], device=boxes.device).split(NMS_BLOCK):
        stays = ~removes(keep.nonzero()[:, 0], block).any(0).cpu()
        among = removes(block, block).cpu()
        for i in range(len(block)):
            if stays[i]:
                stays[i + 1 :] &= ~among[i, i + 1 :]
        keep[block] = stays.to(keep.device)
    return keep


def points_in_rotated_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    points, (x, y, w, h, angle) = points.double(), boxes.double().unbind(1)
    cos, sin = angle.cos(), angle.sin()
    half_w, half_h = w.clamp(min=0) / 2, h.clamp(min=0) / 2
    chunks = []
    for chunk in points.split(max(1, CHUNK_DISTANCES // max(1, boxes.shape[0]))):
        dx, dy = chunk[:, :1] - x, chunk[:, 1:] - y
        chunks.append(((cos * dx + sin * dy).abs() <= half_w) & ((cos * dy - sin * dx).abs() <= half_h))
    return torch.cat(chunks) if chunks else boxes.new_zeros(0, boxes.shape[0], dtype=torch.bool)


def rotated_roi_align(
    features: Tensor, boxes: Tensor, height: int, width: int, spatial_scale: float, sampling_ratio: int
) -> Tensor:
    """features (B, C, H, W) float32 or float64. Boxes with the same image and number of samples are done together."""
    count, channels = boxes.shape[0], features.shape[1]
    image = boxes[:, 0].long()
    if count and (image.min() < 0 or image.max() >= features.shape[0]):
        raise RuntimeError(
            f"rotated_roi_align: boxes belong to images {int(image.min())} to {int(image.max())} and there are "
            f"{features.shape[0]}; column 0 is the image's index in the batch"
        )
    boxes = boxes[:, 1:].double() * boxes.new_tensor((*(spatial_scale,) * 4, 1.0), dtype=torch.float64)
    bins = boxes[:, [3, 2]] / boxes.new_tensor((height, width))  # (K, 2): h and w of a bin
    samples = torch.full_like(bins, sampling_ratio) if sampling_ratio else bins.ceil().clamp(min=1)
    groups, member = torch.cat((image[:, None], samples.long()), 1).unique(dim=0, return_inverse=True)
    out = features.new_zeros(count, channels, height, width)
    if not count:
        return out * features.sum()  # its gradient is zeros
    for group, (index, *ratio) in enumerate(groups.tolist()):
        values = channels * height * width * ratio[0] * ratio[1]
        for chunk in (member == group).nonzero()[:, 0].split(max(1, CHUNK_SAMPLES // max(1, values))):
            out = out.index_copy(0, chunk, align_alike(features[index], boxes[chunk], (height, width), ratio))
    return out


def align_alike(feature: Tensor, boxes: Tensor, size: tuple[int, int], ratio: list[int]) -> Tensor:
    """(C, H, W), (K, 5) in pixels of the map, with `ratio` samples per bin -> (K, C, *size)."""
    (height, width), (cx, cy, w, h, angle) = feature.shape[1:], boxes[..., None, None].unbind(1)
    rows, columns = (
        (torch.arange(n * r, device=boxes.device).double() + 0.5) / (n * r) - 0.5 for n, r in zip(size, ratio)
    )
    along, across = w * columns, h * rows[:, None]  # (K, 1, columns), (K, rows, 1)
    x = cx - 0.5 + along * angle.cos() - across * angle.sin()  # pixel i covers i .. i + 1, its value sits at i + 1/2
    y = cy - 0.5 + along * angle.sin() + across * angle.cos()
    is_near = (x >= -1) & (x <= width) & (y >= -1) & (y <= height)
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), -1).to(feature.dtype)
    grid = torch.where(is_near.unsqueeze(-1), grid, 0)
    sampled = F.grid_sample(feature[None], grid.flatten(0, 1)[None], padding_mode="border", align_corners=False)[0]
    sampled = sampled.unflatten(1, x.shape[:2]) * is_near  # (C, K, rows, columns)
    return sampled.unflatten(3, (size[1], ratio[1])).unflatten(2, (size[0], ratio[0])).mean((3, 5)).movedim(0, 1)

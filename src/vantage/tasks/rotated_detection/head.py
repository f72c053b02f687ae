"""What the dense heads have in common: towers of convolutions, points and anchors of a level, maps as rows."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

PRIOR = 0.01  # a class's probability everywhere at the start, so that the many negatives do not drown the loss


def tower(width: int, num_convs: int, *, norm: bool) -> nn.Sequential:
    """3x3 convolutions with ReLU, with group norm of 32 groups (fewer where 32 does not divide the width) or none."""
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers.append(nn.Conv2d(width, width, 3, padding=1, bias=not norm))
        if norm:
            layers.append(nn.GroupNorm(math.gcd(32, width), width))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def initialise(*parts: nn.Module) -> None:
    """Normal weights of deviation 0.01 and biases 0 for the convolutions."""
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def start_at_prior(classifier: nn.Conv2d) -> None:
    nn.init.constant_(classifier.bias, -math.log((1 - PRIOR) / PRIOR))


def as_rows(level: Tensor, numbers: int) -> Tensor:
    """(B, A * numbers, H, W) -> (B, H * W * A, numbers), float32."""
    batch, _, height, width = level.shape
    level = level.float().view(batch, -1, numbers, height, width)
    return level.permute(0, 3, 4, 1, 2).reshape(batch, -1, numbers)


def as_sizes(levels: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(level.shape[-2], level.shape[-1]) for level in levels]


def grid_points(size: tuple[int, int], stride: int, device: torch.device) -> Tensor:
    """Centres of a map's cells in pixels of the image, (H * W, 2) as (x, y), row by row."""
    ys, xs = (torch.arange(side, device=device, dtype=torch.float32).add_(0.5).mul_(stride) for side in size)
    return torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], -1).view(-1, 2)


def anchor_shapes(base: float, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """(ratios * scales, 2) widths and heights of area (base * scale)^2; a ratio is height / width."""
    sides = [(base * scale / math.sqrt(ratio), base * scale * math.sqrt(ratio)) for ratio in ratios for scale in scales]
    return torch.tensor(sides)


def upright_anchors(size: tuple[int, int], stride: int, shapes: Tensor) -> Tensor:
    """(H * W * A, 4) as (cx, cy, w, h), in the order of `as_rows`."""
    points = grid_points(size, stride, shapes.device)
    return torch.cat(
        [
            points[:, None].expand(-1, len(shapes), -1),
            shapes[None].expand(len(points), -1, -1),
        ],
        -1,
    ).view(-1, 4)


def split_levels(rows: Tensor, sizes: Sequence[tuple[int, int]], per_cell: int = 1) -> list[Tensor]:
    """(..., all rows, K) -> one (..., rows of the level, K) per level."""
    return list(rows.split([height * width * per_cell for height, width in sizes], dim=-2))


def ranges_of(strides: Sequence[int], factor: float) -> list[tuple[float, float]]:
    """The largest distance to a side that each level regresses: up to factor * stride, the last without limit."""
    edges = [0.0, *(factor * stride for stride in strides[:-1]), math.inf]
    return list(pairwise(edges))

"""Boxes for the tests, and the oracle: shapely's polygons."""

import pytest
import torch
from torch import Tensor

from vantage.ops.rotated_boxes import from_cxcywhr_degrees, to_corners

both_backends = pytest.mark.parametrize("backend", ["native", "reference"], indirect=True)  # cuda: test_cuda.py


def boxes_like(rows, dtype=torch.float32) -> Tensor:
    return torch.tensor(rows, dtype=dtype).reshape(-1, 5)


def degrees(*row: float, dtype=torch.float32) -> Tensor:
    """One box from torchvision's degrees, (1, 5)."""
    return from_cxcywhr_degrees(torch.tensor([row], dtype=dtype))


def random_boxes(count: int, dtype=torch.float32, spread: float = 60.0) -> Tensor:
    """Sides of 4 to 64 px, any angle."""
    sides = 4 * 16 ** torch.rand(count, 2, dtype=dtype)
    angles = (torch.rand(count, 1, dtype=dtype) - 0.5) * 2 * torch.pi
    return torch.cat((spread * torch.rand(count, 2, dtype=dtype), sides, angles), 1)


def shapely_areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of aligned boxes in float64: in common, of a, of b. Moved to the origin, for the oracle's own rounding."""
    shapely = pytest.importorskip("shapely", reason="the oracle is shapely (pip install -e '.[dev]')")
    a, b = a.double().clone(), b.double().clone()
    b[:, :2] -= a[:, :2]
    a[:, :2] = 0
    first, second = (shapely.polygons(to_corners(boxes).numpy()) for boxes in (a, b))
    areas = shapely.area(shapely.intersection(first, second)), shapely.area(first), shapely.area(second)
    return tuple(map(torch.from_numpy, areas))


def shapely_iou(a: Tensor, b: Tensor) -> Tensor:
    common, area_a, area_b = shapely_areas(a, b)
    return common / (area_a + area_b - common)

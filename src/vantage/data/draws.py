"""What augmentations of pictures with labels draw, from torch's default generator, and the check of their options."""

import torch

from vantage.data.errors import DataError


def happens(probability: float) -> bool:
    return probability > 0 and bool(torch.rand(()) < probability)


def between(low: int, high: int) -> int:
    """A whole number from low to high, both included, in either order."""
    low, high = min(low, high), max(low, high)
    return int(torch.randint(low, high + 1, ()))


def uniform(low: float, high: float) -> float:
    """From low to high; nothing is drawn where they are the same."""
    return float(torch.empty(()).uniform_(low, high)) if low != high else low


def check_range(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise DataError(f"augment.{name}={value} is outside {low}..{high}")

"""Training on patches that grow: cheap small ones first (as in Restormer, Zamir et al., 2022, arXiv:2111.09881)."""

import random
from collections.abc import Sequence

from torch import Tensor

Schedule = list[tuple[float, int]]  # from which share of the training on, side of the small patch


def checked_schedule(schedule: Sequence[Sequence[float]] | None, largest: int) -> Schedule:
    """Raises: ValueError unless the shares rise from 0 to below 1 and no side is above the data's."""
    if not schedule:
        return []
    steps = [(float(share), int(side)) for share, side in schedule]
    shares = [share for share, _ in steps]
    if shares[0] != 0 or shares != sorted(set(shares)) or shares[-1] >= 1:
        raise ValueError(
            f"task.patches={[list(step) for step in schedule]}: the shares must rise from 0 to below 1, as in "
            "[[0,24],[0.5,48]]"
        )
    for _, side in steps:
        if not 1 <= side <= largest:
            raise ValueError(
                f"task.patches has a side of {side} and the data cuts patches of {largest}; use sides of 1 to "
                f"{largest}, or a larger data.image_size"
            )
    return steps


def side_at(schedule: Schedule, share: float) -> int | None:
    """The side at that share of the training; None: the data's."""
    return next((side for start, side in reversed(schedule) if share >= start), None)


def smaller_patches(images: Tensor, targets: Tensor, side: int, scale: int) -> tuple[Tensor, Tensor]:
    """One window of side x side for the whole batch, and the same of the targets (B, C, scale h, scale w)."""
    top, left = (random.randint(0, length - side) for length in images.shape[-2:])
    images = images[..., top : top + side, left : left + side]
    top, left, side = scale * top, scale * left, scale * side
    return images, targets[..., top : top + side, left : left + side]

"""Sorting the tokens of a map into groups of equal size, axis by axis: index tensors, and the mask of padding."""

from typing import NamedTuple

import torch
from torch import Tensor

from vantage.ops.neighborhood_attention.windows import flat_positions, outer


class AxisGroups(NamedTuple):
    """One axis of a partition.

    position (groups, slots) on the axis, at or past its end where a slot is padding;
    region (groups, slots): slots of different regions do not see each other, None where there is one region only;
    group (L) and slot (L) of each token.
    """

    position: Tensor
    region: Tensor | None
    group: Tensor
    slot: Tensor


def combine(
    axes: list[AxisGroups], lengths: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Token of each slot (groups * slots), slot of each token (N), additive mask (1, groups, slots, slots) or None."""
    index = flat_positions(lengths, *(axis.position.clamp(max=length - 1) for axis, length in zip(axes, lengths)))
    counts = tuple(len(axis.position) for axis in axes)
    slots = tuple(axis.position.shape[1] for axis in axes)
    slot = flat_positions(counts, *(axis.group for axis in axes)) * slots[0] * slots[1]
    slot = slot + flat_positions(slots, *(axis.slot for axis in axes))
    return index.flatten(), slot, mask_of(axes, lengths, dtype)


def mask_of(axes: list[AxisGroups], lengths: tuple[int, int], dtype: torch.dtype) -> Tensor | None:
    divides = all(axis.position.numel() == length for axis, length in zip(axes, lengths))
    if divides and all(axis.region is None for axis in axes):
        return None
    real = [axis.position < length for axis, length in zip(axes, lengths)]
    allowed = []
    for axis, is_real in zip(axes, real):
        seen = is_real[:, None].expand(-1, is_real.shape[1], -1)  # (groups, slots, slots)
        allowed.append(seen if axis.region is None else seen & (axis.region[:, :, None] == axis.region[:, None]))
    # a padded query sees everything: nobody reads it, but an empty softmax would put NaN into the gradients
    seen = outer(torch.logical_and, *allowed) | ~outer(torch.logical_and, *real)[:, :, None]
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, float("-inf"))[None]

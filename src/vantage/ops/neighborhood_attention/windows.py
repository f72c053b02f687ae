"""Which keys a query sees, axis by axis: the border rule of neighborhood attention, as in NATTEN.

Along an axis of length L the tokens split into `dilation` residue classes (index mod dilation), each a sequence of
its own. In a class of length l, with i its own index of the query and i* the leader of the query's stride group:

    not causal   i* = min(i // stride * stride + stride // 2, l - 1)
                 keys start .. start + kernel - 1,  start = clamp(i* - kernel // 2, 0, l - kernel)
    causal       i* = min(i // stride * stride + stride - 1, l - 1)
                 keys max(i* - kernel + 1, 0) .. i

A window at the border is shifted, not shrunk: every query that is not causal sees exactly `kernel` keys. An even
kernel reaches kernel / 2 to the left and kernel / 2 - 1 to the right. Several axes: the product of their windows.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Axis(NamedTuple):
    """One axis of a call: kernel * dilation <= length, stride <= kernel."""

    length: int
    kernel: int
    dilation: int = 1
    stride: int = 1
    is_causal: bool = False

    def pairs(self) -> int:
        """How many (query, key) pairs attend along this axis."""
        if not self.is_causal:
            return self.length * self.kernel
        total = 0
        for residue in range(self.dilation):
            length = -(-(self.length - residue) // self.dilation)
            for i in range(length):
                leader = min(i // self.stride * self.stride + self.stride - 1, length - 1)
                total += i - max(leader - self.kernel + 1, 0) + 1
        return total


def count_pairs(axes: tuple[Axis, ...]) -> int:
    """How many (query, key) pairs the mechanism scores, for one head of one image."""
    return math.prod(axis.pairs() for axis in axes)


def window_bounds(axis: Axis, index: Tensor) -> tuple[Tensor, Tensor]:
    """First and last key, inclusive, of the queries at `index`, all as positions on the axis."""
    residue = index % axis.dilation
    within = index // axis.dilation
    class_length = (axis.length - residue + axis.dilation - 1) // axis.dilation
    group_start = within // axis.stride * axis.stride
    last_of_class = class_length - 1
    if axis.is_causal:
        leader = torch.minimum(group_start + axis.stride - 1, last_of_class)
        first = (leader - axis.kernel + 1).clamp(min=0)
        last = within
    else:
        leader = torch.minimum(group_start + axis.stride // 2, last_of_class)
        first = torch.minimum((leader - axis.kernel // 2).clamp(min=0), class_length - axis.kernel)
        last = first + axis.kernel - 1
    return first * axis.dilation + residue, last * axis.dilation + residue


def outer(op, *per_axis: Tensor) -> Tensor:
    """Combines tensors over several axes: (a1, b1, ..), (a2, b2, ..) -> (a1, a2, b1, b2, ..) by the binary `op`.

    All have the same number of dimensions; each dimension is laid out axis by axis, row-major.
    """
    axes = len(per_axis)
    result = None
    for position, tensor in enumerate(per_axis):
        shape = [1] * (axes * tensor.dim())
        for dim, size in enumerate(tensor.shape):
            shape[dim * axes + position] = size
        tensor = tensor.reshape(shape)
        result = tensor if result is None else op(result, tensor)
    for dim in range(per_axis[0].dim()):
        result = result.flatten(dim, dim + axes - 1)
    return result


def flat_positions(sizes: tuple[int, ...], *per_axis: Tensor) -> Tensor:
    """Row-major flat index in a box of `sizes` of the product of per-axis indices, flattened as `outer` does."""
    weighted, weight = [], 1
    for size, index in zip(reversed(sizes), reversed(per_axis)):
        weighted.append(index * weight)
        weight *= size
    return outer(torch.add, *reversed(weighted))

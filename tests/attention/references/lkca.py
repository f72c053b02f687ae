"""Large kernel convolutional attention: its view as a matrix between tokens."""

import math

import torch

from .toeplitz import toeplitz


def spread(kernels, dim, wanted):
    """Kernels whose axis `dim` belongs to another map: entry by entry, each keeping its sum."""
    own = (kernels.shape[dim] + 1) // 2
    columns = []
    for offset in range(-own + 1, own):
        place = offset * (wanted - 1) / (own - 1) if own > 1 else 0.0
        width = max(1.0, (wanted - 1) / (own - 1)) if own > 1 else 1.0
        shares = [max(0.0, 1 - abs(new - place) / width) for new in range(-wanted + 1, wanted)]
        columns.append(torch.tensor(shares, dtype=torch.float64) / sum(shares))
    return torch.tensordot(kernels, torch.stack(columns), dims=([dim], [0])).movedim(-1, dim)


def kernels_of(module, height, width):
    """(kernels, odd, odd)."""
    kernels = module.kernel
    if module.kernel_size is None:
        for dim, own, wanted in ((1, module.table_size[0], height), (2, module.table_size[1], width)):
            kernels = kernels if own == wanted else spread(kernels, dim, wanted)
    return kernels


def matrices(module, height, width):
    """(dim, N, N), one for each channel."""
    found = toeplitz(kernels_of(module, height, width), height, width)
    return found.repeat_interleave(module.dim // len(found), 0)


def reference(module, x):
    v = x.flatten(1, 2) @ module.v.weight.T
    v = v if module.v.bias is None else v + module.v.bias
    out = torch.einsum("cij,bjc->bic", matrices(module, *x.shape[1:3]), v)
    return out.view(x.shape) @ module.proj.weight.T + module.proj.bias


def transforms(module, height, width):
    """Of even lengths from 2 H - 1 and 2 W - 1 on, without prime factors above 13.

    The H rows that are no padding are transformed, then all columns of half a spectrum, and both are undone.
    Kernels are transformed whole.
    """
    if module.kernel_size is not None:
        return 0
    lengths = []
    for good in (2 * height, 2 * width):
        while any(good % p == 0 for p in range(14, good + 1) if all(p % q for q in range(2, math.isqrt(p) + 1))):
            good += 2
        lengths.append(good)
    tall, wide = lengths
    rows = height * round(5 * wide * math.log2(wide) / 2)
    columns = (wide // 2 + 1) * round(5 * tall * math.log2(tall))
    return module.dim * 2 * (rows + columns) + len(module.kernel) * round(5 * tall * wide * math.log2(tall * wide) / 2)

"""Adaptive frequency filter: explicit Fourier matrices, complex block-diagonal layers frequency by frequency."""

import math

import torch


def fourier(length):
    """(length, length) complex, orthonormal: entry (frequency, place)."""
    index = torch.arange(length, dtype=torch.float64)
    angle = -2 * math.pi * (index[:, None] * index % length) / length
    return torch.polar(torch.full_like(angle, length**-0.5), angle)


def layer(z, weight, bias):
    """z (..., C) complex by block-diagonal complex matrices given as (2, blocks, c, c)."""
    matrix = torch.block_diag(*torch.complex(weight[0], weight[1]))
    out = z @ matrix
    return out if bias is None else out + torch.complex(bias[0], bias[1]).flatten()


def apart(function, z):
    return torch.complex(function(z.real), function(z.imag))


ACTIVATIONS = {
    "relu": lambda a: a.clamp(min=0),
    "gelu": lambda a: a * (1 + torch.erf(a / math.sqrt(2))) / 2,
    "silu": lambda a: a / (1 + (-a).exp()),
}


def mask(module, spectrum):
    hidden = apart(ACTIVATIONS[module.activation], layer(spectrum, module.w1, module.b1))
    threshold = module.sparsity_threshold
    shrink = lambda a: a.sign() * (a.abs() - threshold).clamp(min=0)  # noqa: E731
    return apart(shrink, layer(hidden, module.w2, module.b2))


def reference(module, x):
    height, width = x.shape[1:3]
    rows, columns = fourier(height), fourier(width)
    spectrum = torch.einsum("fy,gx,byxc->bfgc", rows, columns, x.to(torch.complex128))
    half = spectrum[:, :, : width // 2 + 1]
    filtered = mask(module, half) * half
    # a real map has the conjugate at the negative frequency, so what is not computed counts as much as what is
    twice = torch.tensor([1.0 if 2 * g % width == 0 else 2.0 for g in range(width // 2 + 1)], dtype=torch.float64)
    back = torch.einsum("fy,gx,bfgc->byxc", rows.conj(), columns[: len(twice)].conj(), filtered * twice[:, None])
    return back.real + x


def transforms_and_complex_products(module, height, width):
    """Torch counts the multiplication and addition of complex numbers as 2 operations; they are 8 of real ones."""
    points = height * width
    transforms = 2 * module.dim * round(5 * points * math.log2(points) / 2)
    return transforms + 2 * (8 - 2) * height * (width // 2 + 1) * module.dim**2 // module.num_blocks

"""What mechanisms with large kernels share: depthwise convolutions, and lengths and costs of Fourier transforms.

Operations of a transform are counted as 5 n log2 n where it is complex and has n points (height * width of them in two
dimensions), and as half of that where one side is real. torch's FlopCounterMode counts none. Products of two spectra
are elementwise and, as everywhere in flops(), not counted.
"""

import math

import torch.nn.functional as F
from torch import Tensor

LARGEST_RADIX = 13  # prime factors up to this one have transforms of their own in MKL, pocketfft and cuFFT


def depthwise(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """Correlates (B, H, W, C) with odd kernels (C, K, K); zeros lie around the map.

    Taps that could meet nothing but those zeros are left out: that changes nothing and costs less.
    """
    reaches = [min(size // 2, length - 1) for size, length in zip(kernel.shape[1:], x.shape[1:3])]
    rows, columns = (slice(size // 2 - reach, size // 2 + reach + 1) for size, reach in zip(kernel.shape[1:], reaches))
    out = F.conv2d(x.permute(0, 3, 1, 2), kernel[:, None, rows, columns], bias, padding=reaches, groups=x.shape[-1])
    return out.permute(0, 2, 3, 1)


def depthwise_flops(channels: int, kernel_size: int, height: int, width: int) -> int:
    taps = math.prod(min(kernel_size, 2 * length - 1) for length in (height, width))
    return 2 * channels * height * width * taps


def transforms_fast(length: int) -> bool:
    for radix in range(2, LARGEST_RADIX + 1):
        while length % radix == 0:
            length //= radix
    return length == 1


def fast_length(minimum: int) -> int:
    """The shortest even length from `minimum` on that transforms fast; a real transform likes even ones."""
    length = minimum + minimum % 2
    while not transforms_fast(length):
        length += 2
    return length


def transform_flops(points: int) -> int:
    return round(5 * points * math.log2(points))


def real_transform_flops(points: int) -> int:
    return round(2.5 * points * math.log2(points))

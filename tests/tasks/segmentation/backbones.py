"""Maps as the backbones give them, of many kinds: strides, sizes, batches."""

import torch
from torch import Tensor

STRIDES = {
    "vit": [16],
    "pico": [4, 8],
    "swin": [4, 8, 16, 32],
    "resnet": [2, 4, 8, 16, 32],
    "resnet_pico32": [1, 1, 2, 4, 8],
}


def channels_of(strides: list[int]) -> list[int]:
    return [4 * (index + 1) for index in range(len(strides))]


def random_maps(strides: list[int], size: tuple[int, int], batch: int = 2) -> list[Tensor]:
    """Maps (batch, 4 * (i + 1), ceil(H / stride), ceil(W / stride)) of pictures of `size`, finest first."""
    return [
        torch.randn(batch, width, -(-size[0] // stride), -(-size[1] // stride))
        for width, stride in zip(channels_of(strides), strides)
    ]

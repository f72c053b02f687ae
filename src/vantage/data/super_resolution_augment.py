"""Training augmentation of an LR picture with its HR picture: the same window of both, flipped and turned, exact.

Nothing is resampled: an LR picture that was turned by any other angle would be no reduced HR picture any more. A flip
and a quarter turn of probability 1/2 and 1/4 each give all eight symmetries of a square equally often.
Random numbers come from torch's default generator, which the data set seeds for every sample.
"""

import torch
from torch import Tensor

from vantage.data.draws import check_range, happens


class SuperResolutionAugment:
    def __init__(
        self,
        *,
        flip: float = 0.0,  # probability of a left-right flip
        quarter_turn: bool = False,  # 0, 90, 180 or 270 degrees, equally often; of patches that are no square 0 or 180
    ) -> None:
        check_range("flip", flip, 0, 1)
        self.flip, self.quarter_turn = flip, quarter_turn

    def __call__(self, low: Tensor, high: Tensor, size: tuple[int, int], scale: int) -> tuple[Tensor, Tensor]:
        """uint8 (C, h, w) and (C, H, W), H >= scale h, W >= scale w -> (C, *size) and (C, scale * size)."""
        top, left = (int(torch.randint(side - part + 1, ())) for side, part in zip(low.shape[-2:], size))
        low = low[:, top : top + size[0], left : left + size[1]]
        top, left = scale * top, scale * left
        high = high[:, top : top + scale * size[0], left : left + scale * size[1]]
        flips = happens(self.flip)
        turns = int(torch.randint(4, ())) if self.quarter_turn else 0
        turns = turns if size[0] == size[1] else turns // 2 * 2
        if flips:
            low, high = low.flip(-1), high.flip(-1)
        if turns:
            low, high = low.rot90(turns, (-2, -1)), high.rot90(turns, (-2, -1))
        return _owned(low), _owned(high)


def _owned(window: Tensor) -> Tensor:
    """Of its own memory: a view of all pictures would be sent to another process with all of them."""
    return window.clone(memory_format=torch.contiguous_format)

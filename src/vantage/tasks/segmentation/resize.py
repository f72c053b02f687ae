"""Bilinear resizing of maps, which on panoramas knows that the left and the right edge are neighbours."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vantage.tasks.segmentation.wrap import pad_columns


def resize(
    x: Tensor, size: Sequence[int], *, wraps: bool = False, mode: str = "bilinear", antialias: bool = False
) -> Tensor:
    """x (B, C, h, w) -> (B, C, *size), half-pixel centres (align_corners=False).

    wraps      columns beyond an edge are those of the other edge, where otherwise the outermost one is repeated:
               rolling x by w / n rolls the result by width / n, for n that divide both
    antialias  reducing averages over all of the pixels that become one, as F.interpolate's option of that name
    """
    height, width = size
    if tuple(x.shape[-2:]) == (height, width):
        return x
    columns = x.shape[-1]
    if not wraps or columns == width:  # rows alone
        return F.interpolate(x, (height, width), mode=mode, align_corners=False, antialias=antialias)
    # Padding must not move the grid: it has to be a whole number of columns before and after.
    period = columns // math.gcd(columns, width)
    reach = 2 * max(1.0, columns / width if antialias else 1.0)  # of bicubic, the farther one
    pad = period * math.ceil(reach / period)
    out = pad * width // columns
    x = F.interpolate(
        pad_columns(x, pad, pad), (height, width + 2 * out), mode=mode, align_corners=False, antialias=antialias
    )
    return x[..., out : out + width]


def resize_rows(
    take: Callable[[int, int], Tensor], height: int, size: Sequence[int], start: int, stop: int, *, wraps: bool = False
) -> Tensor:
    """Rows start..stop of resize(x, size), up to rounding, at the cost of these rows: (B, C, stop - start, W).

    take(a, b) gives rows a..b (B, C, b - a, w) of x, which has `height` of them. Bilinear resizing is separable: row y
    of the result is row (y + 1/2) h / H - 1/2 of x with its columns resized, a mean of the two rows around it.
    """
    times, rest = divmod(size[0], height)
    if times == 1 and not rest:
        return resize(take(start, stop), (stop - start, size[1]), wraps=wraps)
    if not rest:  # the rows around the wanted ones by themselves, with one more for a neighbour on either side
        first, end = max(0, start // times - 1), min(height, -(-stop // times) + 1)
        x = resize_planes(take(first, end), ((end - first) * times, size[1]), wraps=wraps)
        return x[..., start - first * times : stop - first * times, :]
    at = ((torch.arange(start, stop, dtype=torch.float64) + 0.5) * (height / size[0]) - 0.5).clamp_(min=0)
    above = at.long()
    below = (above + 1).clamp_(max=height - 1)
    first, end = int(above[0]), int(below[-1]) + 1
    x = take(first, end)
    x = resize(x, (end - first, size[1]), wraps=wraps)
    weight = (at - above).to(x)[:, None]
    above, below = ((row - first).to(x.device) for row in (above, below))
    return torch.lerp(x.index_select(-2, above), x.index_select(-2, below), weight)


def resize_planes(x: Tensor, size: Sequence[int], *, wraps: bool = False) -> Tensor:
    """resize(x, size); on a CPU, where x is laid out class by class, in a third of the time and to the same bits.

    Columns first, then rows with the columns in the place of channels: F.interpolate works on vectors only along the
    channels of a channels-last tensor.
    """
    if x.device.type != "cpu":
        return resize(x, size, wraps=wraps)
    batch, channels, height = x.shape[:3]
    x = resize(x, (height, size[1]), wraps=wraps)
    x = x.reshape(batch * channels, height, 1, size[1]).permute(0, 3, 1, 2)  # (B C, W, h, 1), channels last
    return resize(x, (size[0], 1)).permute(0, 2, 3, 1).reshape(batch, channels, *size)


class Resize(nn.Module):
    """`resize` as a module, so that a task can switch wrapping on in all of a decoder (vantage...wrap.wrap)."""

    def __init__(self) -> None:
        super().__init__()
        self.wraps = False

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return resize(x, size, wraps=self.wraps)

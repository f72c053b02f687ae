"""Training augmentation of pictures with masks: pixels and labels move together.

Steps, in this order, each drawn anew for every sample and each off by default:
    roll                                     left and right edge joined, for panoramas
    scale, and a crop to the final size      always a crop, where the picture is larger; a smaller one is padded
    flip, vertical_flip, quarter_turn        exact
    rotate                                   bilinear; labels by the nearest pixel
    photometric, color_jitter                the picture alone, see `recolour`

What comes in from outside is of the mean colour and labelled 255, ignored. A crop of which one class takes more than
`most_of_one_class` of the labelled pixels is drawn again, up to ten times (the field's recipe, 0.75).
Random numbers come from torch's default generator, which the data set seeds for every sample.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vantage.data.base import LUMA
from vantage.data.draws import between, check_range, happens, uniform
from vantage.data.errors import DataError
from vantage.data.masks import IGNORE

TRIES = 10
# factors, and turns of the hue: SSD's (Liu et al., 2016, arXiv:1512.02325, and its release), which the field has kept;
# brightness as a factor, as torchvision has it
PHOTOMETRIC = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.05, 0.05)}
NEAREST = v2.InterpolationMode.NEAREST_EXACT


class SegmentationAugment:
    """The steps above; probabilities are per sample."""

    def __init__(
        self,
        *,
        roll: bool = False,
        scale: Sequence[float] = (1.0, 1.0),  # factor of the picture, uniform
        most_of_one_class: float = 1.0,  # share of a crop's labelled pixels
        flip: float = 0.0,
        vertical_flip: float = 0.0,
        quarter_turn: bool = False,  # 0, 90, 180 or 270 degrees, equally often; of crops that are no square 0 or 180
        rotate: float = 0.0,
        rotate_deg: float = 10.0,  # uniform in [-rotate_deg, rotate_deg]
        photometric: float = 0.0,  # probability of each of brightness, contrast, saturation and hue
        color_jitter: float = 0.0,  # brightness, contrast and saturation factors in [1 - c, 1 + c]
    ) -> None:
        probabilities = {"flip": flip, "vertical_flip": vertical_flip, "rotate": rotate, "photometric": photometric}
        for name, value in (probabilities | {"color_jitter": color_jitter}).items():
            check_range(name, value, 0, 1)
        check_range("rotate_deg", rotate_deg, 0, 180)
        if not 0 < most_of_one_class <= 1:
            raise DataError(f"augment.most_of_one_class={most_of_one_class} is outside 0..1")
        if not isinstance(scale, Sequence) or len(scale) != 2 or not 0 < scale[0] <= scale[1] < math.inf:
            raise DataError(f"augment.scale={scale} is not a pair 0 < low <= high")
        self.roll, self.scale, self.most_of_one_class = roll, tuple(scale), most_of_one_class
        self.flip, self.vertical_flip, self.quarter_turn = flip, vertical_flip, quarter_turn
        self.rotate, self.rotate_deg = rotate, rotate_deg
        self.photometric, self.color_jitter = photometric, color_jitter

    @property
    def is_light(self) -> bool:
        """Whether no step resamples or recolours a picture."""
        return not (self.rotate or self.scale != (1.0, 1.0) or self.photometric or self.color_jitter)

    def __call__(
        self, image: Tensor, mask: Tensor, size: tuple[int, int], fill: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """uint8 (C, H, W) and (H, W) of any size -> of `size`. fill: the colour outside the picture."""
        if self.roll:
            shift = int(torch.randint(image.shape[-1], ()))
            image, mask = image.roll(shift, -1), mask.roll(shift, -1)
        image, mask = self._crop(image, mask, size, fill)
        if happens(self.flip):
            image, mask = image.flip(-1), mask.flip(-1)
        if happens(self.vertical_flip):
            image, mask = image.flip(-2), mask.flip(-2)
        if self.quarter_turn:
            turns = int(torch.randint(4, ()))
            turns = turns if size[0] == size[1] else turns // 2 * 2
            image, mask = image.rot90(turns, (-2, -1)), mask.rot90(turns, (-2, -1))
        if happens(self.rotate):
            angle = uniform(-self.rotate_deg, self.rotate_deg)
            image = F.rotate(image, angle, interpolation=v2.InterpolationMode.BILINEAR, fill=list(fill))
            # its own NEAREST: torchvision's rotate knows no other
            mask = F.rotate(mask[None], angle, interpolation=v2.InterpolationMode.NEAREST, fill=[IGNORE])[0]
        if self.photometric:
            drawn = {name: uniform(*span) for name, span in PHOTOMETRIC.items() if happens(self.photometric)}
            image = recolour(image, **drawn)
        if self.color_jitter:
            low, high = 1 - self.color_jitter, 1 + self.color_jitter
            image = recolour(
                image, brightness=uniform(low, high), contrast=uniform(low, high), saturation=uniform(low, high)
            )
        return image.contiguous(), mask.contiguous()

    def _crop(self, image: Tensor, mask: Tensor, size: tuple[int, int], fill: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A window of the picture resized by a factor. It is cut first, so that no more is resized than is kept."""
        factor = uniform(*self.scale)
        window = [max(1, round(side / factor)) for side in size]
        for _ in range(TRIES):
            top, left = (between(0, side - part) for side, part in zip(mask.shape, window))
            labels = cut(mask[None], top, left, window, [IGNORE])[0]
            if self.most_of_one_class == 1 or _largest_share(labels) <= self.most_of_one_class:
                break
        pixels = cut(image, top, left, window, fill)
        if tuple(window) != tuple(size):
            pixels = F.resize(pixels, list(size), antialias=True)
            labels = F.resize(labels[None], list(size), interpolation=NEAREST)[0]
        return pixels, labels


def cut(picture: Tensor, top: int, left: int, window: Sequence[int], fill: Sequence[int]) -> Tensor:
    """The window (h, w) of (C, H, W) at (top, left), which may reach beyond the picture: there it is `fill`."""
    height, width = picture.shape[-2:]
    bottom, right = top + window[0], left + window[1]
    inside = picture[:, max(0, top) : min(bottom, height), max(0, left) : min(right, width)]
    if tuple(inside.shape[-2:]) == tuple(window):
        return inside
    out = torch.tensor(fill, dtype=picture.dtype)[:, None, None].repeat(1, *window)
    row, column = max(0, -top), max(0, -left)
    out[:, row : row + inside.shape[-2], column : column + inside.shape[-1]] = inside
    return out


def _largest_share(labels: Tensor) -> float:
    """Of the labelled pixels, the share of the most frequent class; 1 if nothing is labelled."""
    counts = torch.bincount(labels.flatten(), minlength=IGNORE + 1)[:IGNORE]
    total = int(counts.sum())
    return int(counts.max()) / total if total else 1.0


def recolour(
    image: Tensor, *, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> Tensor:
    """uint8 (C, H, W) of 3 channels or 1 -> the same, with the colour x of each pixel changed in this order:

    brightness   f x
    contrast     f x + (1 - f) m              m: the mean luma of the picture
    saturation   f x + (1 - f) luma(x)
    hue          x turned around the grey axis by 2 pi f: 1/3 makes red green

    All are linear in x, so they are one matrix and one offset, and the result is rounded and cut to 0..255 once. The
    first three are torchvision's. Its hue turns x in HSV and keeps the brightest of the three channels, which takes
    ten times as long as all of this; here their mean is kept. Both keep grey, and agree for thirds of a turn.
    """
    pixels = image.flatten(1).float()  # (C, H W)
    if len(image) == 3:
        luma = LUMA
        matrix = _hue_turn(hue) @ (saturation * torch.eye(3) + (1 - saturation) * LUMA.expand(3, 3))
    else:
        luma, matrix = torch.ones(1), torch.ones(1, 1)
    # rows of `matrix` sum to 1: it leaves the grey that contrast adds as it is
    offset = brightness * (1 - contrast) * float(luma @ pixels.mean(1))
    changed = (brightness * contrast * matrix) @ pixels + offset
    return changed.round_().clamp_(0, 255).to(torch.uint8).view_as(image)


def _hue_turn(turns: float) -> Tensor:
    """The rotation of RGB by `turns` of a whole turn around (1, 1, 1)."""
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    same, next_, last = (1 + 2 * cos) / 3, (1 - cos) / 3 + sin / math.sqrt(3), (1 - cos) / 3 - sin / math.sqrt(3)
    # red goes to green, green to blue, blue to red
    return torch.tensor([[same, last, next_], [next_, same, last], [last, next_, same]])

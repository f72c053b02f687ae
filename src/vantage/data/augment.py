"""Training augmentation: what changes a picture at random before a model sees it.

Steps, in this order, each drawn anew for every sample and each off by default:
    crop "resized" (on the decoded picture)  or  crop "pad" (at the final size)
    flip, vertical_flip
    rotate, translate, zoom, shear           one affine map, bilinear, zeros outside
    color jitter
    RandAugment
    random erasing                           after normalisation, so that "mean" is exactly zero

Crop "pad", flips, the affine map and erasing work on the whole batch at once with one set of parameters per sample:
128 CIFAR images take under 1 ms, sample by sample through torchvision they take 13 ms. The others call
torchvision.transforms.v2 for each sample and are worth loader workers.
Random numbers come from torch's default generator, which the data set seeds for every batch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from vantage.data.errors import DataError
from vantage.data.images import INTERPOLATIONS


class Augment:
    """The steps above; lengths are shares of the picture, angles degrees, probabilities per sample."""

    def __init__(
        self,
        *,
        crop: str = "none",  # "none" | "pad": shift by up to `padding` pixels | "resized": RandomResizedCrop
        padding: int = 4,
        padding_mode: str = "constant",  # "constant" (black) | "reflect" | "replicate"
        crop_scale: Sequence[float] = (0.08, 1.0),  # area
        crop_ratio: Sequence[float] = (0.75, 1.3333),  # width / height
        flip: float = 0.0,
        vertical_flip: float = 0.0,
        rotate_deg: float = 0.0,  # uniform in [-rotate_deg, rotate_deg]
        translate: float = 0.0,  # uniform in [-translate, translate] of each side
        zoom: float = 0.0,  # factor uniform in [1 - zoom, 1 + zoom]
        shear_deg: float = 0.0,
        color_jitter: float = 0.0,  # brightness, contrast and saturation factors in [1 - c, 1 + c]
        rand_augment_ops: int = 0,  # operations per sample; 0: off
        rand_augment_magnitude: int = 9,  # 0..30
        erase: float = 0.0,
        erase_scale: Sequence[float] = (0.02, 0.33),  # area
        erase_ratio: Sequence[float] = (0.3, 3.3),
        erase_value: str = "mean",  # "mean" | "noise": standard normal for every pixel
    ) -> None:
        _choice("crop", crop, ("none", "pad", "resized"))
        _choice("padding_mode", padding_mode, ("constant", "reflect", "replicate"))
        _choice("erase_value", erase_value, ("mean", "noise"))
        probabilities = {"flip": flip, "vertical_flip": vertical_flip, "erase": erase, "translate": translate}
        for name, value in (probabilities | {"zoom": zoom, "color_jitter": color_jitter}).items():
            _range(name, value, 0, 1)
        _range("rotate_deg", rotate_deg, 0, 180)
        _range("shear_deg", shear_deg, 0, 80)
        _range("rand_augment_magnitude", rand_augment_magnitude, 0, 30)
        _range("rand_augment_ops", rand_augment_ops, 0, 14)
        _range("padding", padding, 0, 1024)
        for name, pair in (("crop_scale", crop_scale), ("erase_scale", erase_scale)):
            _pair(name, pair, 1.0)
        for name, pair in (("crop_ratio", crop_ratio), ("erase_ratio", erase_ratio)):
            _pair(name, pair, math.inf)

        self.crop, self.padding, self.padding_mode = crop, padding, padding_mode
        self.crop_scale, self.crop_ratio = tuple(crop_scale), tuple(crop_ratio)
        self.flip, self.vertical_flip = flip, vertical_flip
        self.rotate_deg, self.translate, self.zoom, self.shear_deg = rotate_deg, translate, zoom, shear_deg
        self.erase, self.erase_value = erase, erase_value
        self.erase_scale, self.erase_ratio = tuple(erase_scale), tuple(erase_ratio)

        self.per_sample: list[v2.Transform] = []
        if color_jitter:
            self.per_sample.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
        if rand_augment_ops:
            self.per_sample.append(v2.RandAugment(rand_augment_ops, rand_augment_magnitude))

    @property
    def crops_original(self) -> bool:
        """Whether it starts from the picture as decoded, of whatever size, and not from one of the final size."""
        return self.crop == "resized"

    @property
    def is_light(self) -> bool:
        """Whether all steps are batched: then loader workers cost more than they save."""
        return not self.crops_original and not self.per_sample

    def crop_resized(self, images: Sequence[Tensor], size: tuple[int, int], interpolation: str) -> Tensor:
        """RandomResizedCrop of pictures uint8 (C, h, w) -> (B, C, *size)."""
        crop = v2.RandomResizedCrop(
            size, scale=self.crop_scale, ratio=self.crop_ratio, interpolation=INTERPOLATIONS[interpolation]
        )
        return torch.stack([crop(image) for image in images])

    def change(self, images: Tensor) -> Tensor:
        """All steps on pixels: uint8 (B, C, H, W) -> the same; the input is left as it was."""
        if self.crop == "pad" or self.flip or self.vertical_flip:
            images = self._shift_and_flip(images)
        if self.rotate_deg or self.translate or self.zoom or self.shear_deg:
            images = self._affine(images)
        for transform in self.per_sample:
            images = torch.stack([transform(image) for image in images])
        return images

    def erase_boxes(self, images: Tensor) -> Tensor:
        """Random erasing of normalised pictures, float (B, C, H, W), in place."""
        if not self.erase:
            return images
        count, channels, height, width = images.shape
        area = torch.empty(count).uniform_(*self.erase_scale) * height * width
        ratio = torch.empty(count).uniform_(*(math.log(value) for value in self.erase_ratio)).exp()  # height / width
        box_height = (area * ratio).sqrt().round().clamp(1, height)
        box_width = (area / ratio).sqrt().round().clamp(1, width)
        top = (torch.rand(count) * (height - box_height + 1)).floor()
        left = (torch.rand(count) * (width - box_width + 1)).floor()
        rows, columns = torch.arange(height), torch.arange(width)
        in_rows = (rows >= top[:, None]) & (rows < (top + box_height)[:, None])  # (B, H)
        in_columns = (columns >= left[:, None]) & (columns < (left + box_width)[:, None])  # (B, W)
        chosen = (torch.rand(count) < self.erase)[:, None, None]
        mask = (chosen & in_rows[:, :, None] & in_columns[:, None, :])[:, None]  # (B, 1, H, W)
        if self.erase_value == "noise":
            return torch.where(mask, torch.randn(count, channels, height, width), images)
        return images.masked_fill_(mask, 0.0)

    def _shift_and_flip(self, images: Tensor) -> Tensor:
        # One gather does the crop and both flips: mirrored samples read their rows or columns backwards.
        count, channels, height, width = images.shape
        rows, columns = torch.arange(height), torch.arange(width)
        y = torch.where(torch.rand(count, 1) < self.vertical_flip, height - 1 - rows, rows)  # (B, H)
        x = torch.where(torch.rand(count, 1) < self.flip, width - 1 - columns, columns)  # (B, W)
        pad = self.padding if self.crop == "pad" else 0
        if pad:
            y = y + torch.randint(0, 2 * pad + 1, (count, 1))
            x = x + torch.randint(0, 2 * pad + 1, (count, 1))
            if self.padding_mode == "constant":
                images = F.pad(images, (pad, pad, pad, pad))
            else:  # not implemented for uint8; float16 holds 0..255 exactly but has no CPU kernel either
                images = F.pad(images.float(), (pad, pad, pad, pad), mode=self.padding_mode).to(torch.uint8)
        flat = (y[:, :, None] * (width + 2 * pad) + x[:, None, :]).flatten(1)  # (B, H * W)
        picked = images.flatten(2).gather(2, flat[:, None].expand(-1, channels, -1))
        return picked.view(count, channels, height, width)

    def _affine(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape

        def draw(limit: float) -> Tensor:
            return torch.empty(count).uniform_(-1, 1) * limit

        angle, shear = torch.deg2rad(draw(self.rotate_deg)), torch.tan(torch.deg2rad(draw(self.shear_deg)))
        scale = 1 / (1 + draw(self.zoom)).clamp_min(1e-3)
        shift_x, shift_y = draw(self.translate) * width, draw(self.translate) * height
        return affine(images, angle, shear, scale, shift_y, shift_x)


def affine(images: Tensor, angle: Tensor, shear: Tensor, scale: Tensor, shift_y: Tensor, shift_x: Tensor) -> Tensor:
    """Resample uint8 (B, C, H, W): output at p (from the centre) = input at A p + shift, A = scale R(angle) S.

    angle in radians, shear the tangent, scale > 1 shrinks, shifts in pixels; each (B,). Zeros outside.
    """
    height, width = images.shape[-2:]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    # grid_sample counts in half sides: x' = (A p + shift) in units of W / 2, hence the side ratios off the diagonal
    row_x = torch.stack([cos, (cos * shear - sin) * (height / width), shift_x * 2 / width], dim=-1)
    row_y = torch.stack([sin * (width / height), sin * shear + cos, shift_y * 2 / height], dim=-1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(images.shape), align_corners=False)
    sampled = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.round_().clamp_(0, 255).to(torch.uint8)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise DataError(f"augment.{name}={value!r} is not one of {', '.join(choices)}")


def _range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise DataError(f"augment.{name}={value} is outside {low}..{high}")


def _pair(name: str, pair: Sequence[float], high: float) -> None:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= high:
        limit = f" <= {high:g}" if high < math.inf else ""
        raise DataError(f"augment.{name}={list(pair)} is not a pair 0 < low <= high{limit}")

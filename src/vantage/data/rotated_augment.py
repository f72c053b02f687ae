"""Training augmentation of pictures with rotated boxes: box, mask and pixels move together.

Steps, in this order, each drawn anew for every sample and each off by default:
    mosaic                                   four pictures around a point
    flip, vertical_flip, transpose           exact
    quarter_turn                             exact
    rotate and zoom                          one affine map, bilinear, the fill colour outside
    crop to the final size at random         always, where the picture is larger; a smaller one is padded
    color jitter

torchvision's transforms move the boxes (CXCYWHR tv_tensors, degrees counter-clockwise, clamping_mode=None: its default
shrinks boxes at the edge); afterwards they are canonical again (vantage.ops.rotated_boxes).
An object of which a step leaves less than `keep_visible` of what was to be seen becomes difficult: it is no negative,
and no box to learn either. What has left the picture altogether is no object of it any more, also where padding has
made room for its box again.
Random numbers come from torch's default generator, which the data set seeds for every sample.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vantage.data.draws import between, check_range, happens
from vantage.data.errors import DataError
from vantage.data.masks import IGNORE
from vantage.data.rotated_geometry import window_share
from vantage.ops.rotated_boxes import canonical, from_cxcywhr_degrees, to_corners, to_cxcywhr_degrees

Sample = dict[str, Any]

MOVED = ("image", "boxes", "masks")
LISTED = ("labels", "difficult", "in_sight")  # one value per box


class RotatedAugment:
    """The steps above; probabilities are per sample. Samples are those of `RotatedDataset`, pictures still uint8."""

    def __init__(
        self,
        *,
        mosaic: float = 0.0,
        flip: float = 0.0,
        vertical_flip: float = 0.0,
        transpose: float = 0.0,
        quarter_turn: bool = False,  # 0, 90, 180 or 270 degrees, equally often
        rotate: float = 0.0,
        rotate_deg: float = 180.0,  # uniform in [-rotate_deg, rotate_deg]
        zoom: Sequence[float] = (1.0, 1.0),  # factor, log-uniform
        keep_visible: float = 0.7,  # share of an object
        color_jitter: float = 0.0,  # brightness, contrast and saturation factors in [1 - c, 1 + c]
    ) -> None:
        probabilities = {"mosaic": mosaic, "flip": flip, "vertical_flip": vertical_flip, "transpose": transpose}
        for name, value in (probabilities | {"rotate": rotate, "color_jitter": color_jitter}).items():
            check_range(name, value, 0, 1)
        check_range("rotate_deg", rotate_deg, 0, 180)
        check_range("keep_visible", keep_visible, 0, 1)
        if len(zoom) != 2 or not 0 < zoom[0] <= zoom[1] < math.inf:
            raise DataError(f"augment.zoom={list(zoom)} is not a pair 0 < low <= high")
        self.mosaic = mosaic
        self.flip, self.vertical_flip, self.transpose, self.quarter_turn = flip, vertical_flip, transpose, quarter_turn
        self.rotate, self.rotate_deg, self.zoom = rotate, rotate_deg, tuple(zoom)
        self.keep_visible = keep_visible
        self.jitter = v2.ColorJitter(color_jitter, color_jitter, color_jitter) if color_jitter else None

    @property
    def is_light(self) -> bool:
        """Whether no step resamples or recolours a picture."""
        return not self.rotate and self.zoom == (1.0, 1.0) and self.jitter is None

    def __call__(
        self, sample: Sample, size: tuple[int, int], fill: Sequence[int], another: Callable[[], Sample]
    ) -> Sample:
        """A sample of `size` from one of any size. fill: the colour outside. another: draws a sample for mosaic."""
        sample = with_sight(as_tv_tensors(sample))
        if happens(self.mosaic):
            sample = self._mosaic(sample, size, fill, another)
        if happens(self.flip):
            sample = move(sample, F.horizontal_flip)
        if happens(self.vertical_flip):
            sample = move(sample, F.vertical_flip)
        if happens(self.transpose):
            sample = transpose(sample)
        if self.quarter_turn:
            for _ in range(int(torch.randint(4, ()))):  # a transpose and a flip turn by 90 degrees
                sample = move(transpose(sample), F.horizontal_flip)
        if self.zoom != (1.0, 1.0) or happens(self.rotate):
            sample = self._keep(self._affine(sample, fill))
        sample = self._keep(self._crop(sample, size, fill))
        if self.jitter is not None:
            sample = sample | {"image": self.jitter(sample["image"])}
        return as_tensors(sample)

    def _affine(self, sample: Sample, fill: Sequence[int]) -> Sample:
        angle = float(torch.empty(()).uniform_(-self.rotate_deg, self.rotate_deg)) if happens(self.rotate) else 0.0
        scale = math.exp(float(torch.empty(()).uniform_(*map(math.log, self.zoom))))
        options = {"angle": angle, "translate": [0, 0], "scale": scale, "shear": [0.0, 0.0]}
        return move(sample, F.affine, fill, interpolation=v2.InterpolationMode.BILINEAR, **options)

    def _crop(self, sample: Sample, size: tuple[int, int], fill: Sequence[int]) -> Sample:
        """A random window of the final size; of a smaller picture, all of it at a random place."""
        height, width = sample["image"].shape[-2:]
        if (height, width) == size:
            return sample
        return cut(sample, between(0, height - size[0]), between(0, width - size[1]), size, fill)

    def _mosaic(
        self, sample: Sample, size: tuple[int, int], fill: Sequence[int], another: Callable[[], Sample]
    ) -> Sample:
        """Four pictures in the quadrants around a point, each cut to its quadrant, none resized."""
        height, width = size
        y, x = between(height // 4, height - height // 4), between(width // 4, width - width // 4)
        places = ((0, 0, y, x), (0, x, y, width - x), (y, 0, height - y, x), (y, x, height - y, width - x))
        parts = []
        for top, left, rows, columns in places:
            part = sample if not parts else with_sight(as_tv_tensors(another()))
            part = self._keep(self._crop(part, (rows, columns), fill))  # now, while the quadrant is all there is
            part["boxes"] = _boxes(part["boxes"] + torch.tensor([left, top, 0, 0, 0]), size)
            parts.append(part)
        joined = {"boxes": _boxes(torch.cat([part["boxes"].as_subclass(Tensor) for part in parts]), size)}
        joined |= {key: torch.cat([part[key] for part in parts]) for key in LISTED}
        for key, kind in (("image", tv_tensors.Image), ("masks", tv_tensors.Mask)):
            if key in sample:
                a, b, c, d = (part[key].as_subclass(Tensor) for part in parts)
                joined[key] = kind(torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2))
        return sample | joined

    def _keep(self, sample: Sample) -> Sample:
        """Drops what is out of sight, and marks what lost too much of what was in sight at first."""
        now = in_sight(sample)
        kept = (now > 0) & (sample["in_sight"] > 0)  # what never was on the picture does not enter it by zooming out
        sample = sample | {"difficult": sample["difficult"] | (now < self.keep_visible * sample["in_sight"])}
        if kept.all():
            return sample
        boxes = _boxes(sample["boxes"].as_subclass(Tensor)[kept], sample["boxes"].canvas_size)
        return sample | {"boxes": boxes} | {key: sample[key][kept] for key in LISTED}


def as_tv_tensors(sample: Sample) -> Sample:
    """Picture, boxes and masks as what torchvision's transforms move together."""
    boxes = _boxes(to_cxcywhr_degrees(sample["boxes"]), sample["image"].shape[-2:])
    typed = sample | {"image": tv_tensors.Image(sample["image"]), "boxes": boxes}
    return typed | {"masks": tv_tensors.Mask(sample["masks"])} if "masks" in sample else typed


def as_tensors(sample: Sample) -> Sample:
    """The way back: plain tensors, boxes (cx, cy, w, h, angle_rad) in their canonical form."""
    plain = without_window(sample) | {key: sample[key].as_subclass(Tensor) for key in MOVED if key in sample}
    del plain["in_sight"]
    boxes = canonical(from_cxcywhr_degrees(plain["boxes"]))
    return plain | {"boxes": boxes, "size": tuple(plain["image"].shape[-2:])}


def move(sample: Sample, transform: Callable, fill: Sequence[int] | None = None, **options: Any) -> Sample:
    """Applies a function of torchvision's to picture, boxes and masks."""
    moved = {}
    for key in MOVED:
        if key in sample and not (key == "boxes" and not len(sample[key])):
            extra = {} if fill is None else {"fill": {"image": list(fill), "masks": [IGNORE]}.get(key)}
            moved[key] = transform(sample[key], **options, **extra)
    if "boxes" not in moved:  # none to move, but the canvas they would lie on
        moved["boxes"] = _boxes(sample["boxes"].as_subclass(Tensor), moved["image"].shape[-2:])
    return sample | moved


def transpose(sample: Sample) -> Sample:
    """Mirrors in the main diagonal: x becomes y. torchvision has no such function."""
    cx, cy, w, h, degrees = sample["boxes"].as_subclass(Tensor).unbind(-1)
    height, width = sample["image"].shape[-2:]
    # counter-clockwise from x, so a direction at r becomes one at -90 - r (y points down)
    moved = {"boxes": _boxes(torch.stack([cy, cx, w, h, -90 - degrees], -1), (width, height))}
    moved["image"] = tv_tensors.Image(sample["image"].as_subclass(Tensor).transpose(-1, -2))
    if "masks" in sample:
        moved["masks"] = tv_tensors.Mask(sample["masks"].as_subclass(Tensor).transpose(-1, -2))
    return sample | moved


def cut(sample: Sample, top: int, left: int, size: tuple[int, int], fill: Sequence[int]) -> Sample:
    """The window of `size` at (top, left), which may reach beyond the picture: the fill colour is there.

    "window" of the result is where on it the picture is, without the padding: (left, top, right, bottom).
    """
    height, width = sample["image"].shape[-2:]
    shown = (max(0, -left), max(0, -top), min(size[1], width - left), min(size[0], height - top))
    pad = [max(0, -left), max(0, -top), max(0, left + size[1] - width), max(0, top + size[0] - height)]
    if any(pad):
        image = sample["image"].as_subclass(Tensor)
        padded = torch.tensor(fill, dtype=image.dtype)[:, None, None].repeat(
            1, height + pad[1] + pad[3], width + pad[0] + pad[2]
        )
        padded[:, pad[1] : pad[1] + height, pad[0] : pad[0] + width] = image
        sample = sample | {
            "image": tv_tensors.Image(padded),
            "boxes": F.pad(sample["boxes"], pad),
            **({"masks": F.pad(sample["masks"], pad, fill=IGNORE)} if "masks" in sample else {}),
        }
    moved = move(sample, F.crop, top=top + pad[1], left=left + pad[0], height=size[0], width=size[1])
    return moved | {"window": shown}


def in_sight(sample: Sample) -> Tensor:
    """The share of each box inside the picture, padding left out, (N,)."""
    height, width = sample["image"].shape[-2:]
    corners = to_corners(from_cxcywhr_degrees(sample["boxes"].as_subclass(Tensor)))
    return torch.from_numpy(window_share(corners.numpy(), sample.get("window", (0, 0, width, height)))).float()


def with_sight(sample: Sample) -> Sample:
    return sample | {"in_sight": in_sight(sample)}


def without_window(sample: Sample) -> Sample:
    return {key: value for key, value in sample.items() if key != "window"}


def _boxes(boxes: Tensor, canvas_size: Sequence[int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(
        boxes.as_subclass(Tensor), format="CXCYWHR", canvas_size=tuple(canvas_size), clamping_mode=None
    )

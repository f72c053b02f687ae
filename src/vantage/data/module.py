"""What all classification data modules share: options, caching, labels. A format adds how its files are read."""

import functools
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vantage.data.augment import Augment
from vantage.data.base import STAGES, VisionData, require
from vantage.data.dataset import ImageDataset
from vantage.data.errors import DataError
from vantage.data.images import INTERPOLATIONS, as_evaluated, fit, read_image
from vantage.data.info import DataInfo
from vantage.data.store import FileStore, MemoryStore, Store, decode_all, estimate_bytes, usable_cores

log = logging.getLogger(__name__)


@dataclass
class RawSplit:
    """A split as its format gives it. `source`: uint8 (N, C, H, W), or the paths of N files."""

    source: Tensor | list[str]
    labels: Tensor  # int64 (N,)
    names: list[str]  # what to call each sample: a path or an id

    def select(self, index: Tensor) -> "RawSplit":
        picked = index.tolist()
        source = self.source[index] if isinstance(self.source, Tensor) else [self.source[i] for i in picked]
        return RawSplit(source, self.labels[index], [self.names[i] for i in picked])


class ClassificationData(VisionData):
    """Train, val and test loaders of {"image": float (B, C, H, W), "label": int64 (B,), "index": int64 (B,)}.

    image_size: the size of every batch; pictures are resized to cover it and cut from the centre.
    augment: of training pictures; {} or None: default_augment.
    """

    tasks = ("classification",)

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        in_chans: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str,
        center_crop: float,
        batch_size: int,
        eval_batch_size: int | None,
        drop_last: bool,
        num_workers: int | str,
        cache: bool | str,
        cache_gb: float,
        on_bad_sample: str,
        seed: int,
        split_seed: int,
        augment: Augment | dict | None,
        default_augment: Augment | None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            in_chans=in_chans,
            mean=mean,
            std=std,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            num_workers=num_workers,
            cache=cache,
            cache_gb=cache_gb,
            on_bad_sample=on_bad_sample,
            seed=seed,
            split_seed=split_seed,
        )
        require(interpolation in INTERPOLATIONS, "interpolation", interpolation, " or ".join(INTERPOLATIONS))
        require(0 < center_crop <= 1, "center_crop", center_crop, "in (0, 1]")
        self.interpolation, self.center_crop = interpolation, center_crop
        self.augment = augment or default_augment or Augment()
        if not isinstance(self.augment, Augment):
            raise DataError(
                f"augment is a {type(self.augment).__name__}, which moves boxes that class labels do not have; "
                "use augment=default, or another file of configs/augment"
            )
        self._raw: dict[str, RawSplit] | None = None

    # ---- what a format defines

    @abstractmethod
    def open(self) -> tuple[dict[str, RawSplit], list[str]]:
        """The splits that exist (test may be missing, val too) and the names of the classes, in label order."""

    # ---- Lightning's hooks

    def setup(self, stage: str | None = None) -> None:
        if self._raw is None:
            self._raw, class_names = self.open()
            self._info = DataInfo(len(class_names), class_names, self.in_chans, self.image_size, self.mean, self.std)
            self._raw = {name: self._check_labels(name, split) for name, split in self._raw.items()}
        for name in STAGES[stage]:
            if name in self._raw and name not in self.datasets:
                self.datasets[name] = self._build(name, self._raw[name])

    # ---- for tasks and pictures

    def predict_transform(self) -> Callable[[Image.Image], Tensor]:
        """Any PIL picture -> the normalised (C, H, W) that evaluation would see."""
        return functools.partial(
            as_evaluated, info=self.info, center_crop=self.center_crop, interpolation=self.interpolation
        )

    # ---- parts

    def is_light(self, dataset: ImageDataset) -> bool:
        is_sized = isinstance(dataset.store, MemoryStore) and dataset.store.pixels.shape[-2:] == dataset.info.image_size
        return is_sized and (dataset.augment is None or dataset.augment.is_light)

    def _build(self, split: str, raw: RawSplit) -> ImageDataset:
        is_train = split == "train"
        # what can be computed once is: the final size, unless augmentation cuts from the original
        size = None if is_train and self.augment.crops_original else self.image_size
        if isinstance(raw.source, Tensor):
            store: Store = MemoryStore(self._convert(raw.source, size))
        else:
            decode = functools.partial(
                _decode,
                in_chans=self.in_chans,
                size=size,
                center_crop=self.center_crop,
                interpolation=self.interpolation,
            )
            store = FileStore(raw.source, decode)
            gigabytes = estimate_bytes(raw.source, self.in_chans, size) / 1e9
            if self.cache is True or (self.cache == "auto" and gigabytes <= self.cache_gb):
                what = f"{len(raw.source):,} {split} images"
                store, bad = decode_all(raw.source, decode, self.in_chans, size, what, usable_cores())
                raw = self._drop_bad(split, raw, bad)
            else:
                log.info("%s images are decoded at every read (%.1f GB is over data.cache_gb)", split, gigabytes)
        if not len(store):
            raise DataError(f"the {split} split has no sample left")
        return ImageDataset(
            store,
            raw.labels,
            raw.names,
            self.info,
            seed=self.seed,
            center_crop=self.center_crop,
            interpolation=self.interpolation,
            skip_bad=self.skip_bad,
            augment=self.augment if is_train else None,
        )

    def _convert(self, pixels: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Raw uint8 (N, C, h, w) -> (N, in_chans, H, W), resized now if that fits into cache_gb."""
        if self.in_chans == 3 and pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        elif self.in_chans == 1 and pixels.shape[1] == 3:
            pixels = F.rgb_to_grayscale(pixels)
        if size is None or self.cache is False:
            return pixels
        if self.cache == "auto" and len(pixels) * self.in_chans * math.prod(size) / 1e9 > self.cache_gb:
            return pixels
        parts = [fit(part, size, self.center_crop, self.interpolation) for part in pixels.split(4096)]
        return torch.cat(parts)

    def _check_labels(self, split: str, raw: RawSplit) -> RawSplit:
        outside = (raw.labels < 0) | (raw.labels >= self.info.num_classes)
        bad = {
            i: f"{raw.names[i]}: label {int(raw.labels[i])} is outside 0..{self.info.num_classes - 1}"
            for i in outside.nonzero().flatten().tolist()
        }
        return self._drop_bad(split, raw, bad)

    def _drop_bad(self, split: str, raw: RawSplit, bad: dict[int, str]) -> RawSplit:
        if not bad:
            return raw
        self.report_bad(list(bad.values()), f"{len(bad)} of {len(raw.labels)} {split} samples are bad and were skipped")
        return raw.select(torch.tensor([i for i in range(len(raw.labels)) if i not in bad], dtype=torch.int64))


def _decode(path: str, in_chans: int, size: tuple[int, int] | None, center_crop: float, interpolation: str) -> Tensor:
    image = read_image(path, in_chans)
    return image if size is None else fit(image, size, center_crop, interpolation)

"""What all data modules for segmentation share: reading, caching, resizing, augmentation. A format adds its files."""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vantage.data.augment import Augment
from vantage.data.base import require
from vantage.data.dense import DenseData, augment_of
from vantage.data.errors import DataError
from vantage.data.images import to_tensor
from vantage.data.info import DataInfo
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.segmentation_augment import SegmentationAugment
from vantage.data.segmentation_dataset import (
    FilePairs,
    MemoryPairs,
    SegmentationDataset,
    SegmentationSplit,
    read_all,
    resized,
)
from vantage.data.store import header_size, usable_cores

log = logging.getLogger(__name__)


class SegmentationData(DenseData):
    """Train, val and test loaders of lists of samples, one dict per picture as `SegmentationDataset` describes it.

    image_size: the size of training pictures: a random window of larger ones, smaller ones padded with `mean`.
    Evaluation gets pictures whole and of any size; what is too large for a model is the task's to cut and to merge.
    resize: before anything else, a picture's shorter side, or (H, W); None leaves it. In evaluation the mask keeps
    the annotation's own size, at which scores are taken.
    augment: of training samples, a SegmentationAugment (configs/augment/segmentation*.yaml); {} or None:
    default_augment.
    """

    tasks = ("segmentation",)

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 512,
        resize: int | Sequence[int] | None = None,
        in_chans: int = 3,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        batch_size: int = 8,
        eval_batch_size: int | None = 1,
        drop_last: bool = True,
        num_workers: int | str = "auto",
        cache: bool | str = "auto",
        cache_gb: float = 2.0,
        on_bad_sample: str = "raise",
        seed: int = 0,
        split_seed: int = 0,
        augment: SegmentationAugment | RotatedAugment | Augment | dict | None = None,
        default_augment: SegmentationAugment | None = None,
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
        sides = [resize] if isinstance(resize, int) else list(resize or ())
        one_or_two = resize is None or isinstance(resize, int) or len(sides) == 2
        require(
            one_or_two and min(sides, default=1) >= 1, "resize", resize, "null, the shorter side or [height, width]"
        )
        self.resize = resize if resize is None or isinstance(resize, int) else (sides[0], sides[1])
        self.augment: SegmentationAugment = augment_of(
            SegmentationAugment, augment, default_augment, moves="masks", files="segmentation"
        )

    # ---- for tasks and pictures

    def predict_transform(self, info: DataInfo) -> Callable[[Image.Image], tuple[Tensor, tuple[int, int]]]:
        """Any PIL picture -> the normalised (C, H, W) that evaluation would see, and the picture's own (H, W).

        info: of the trained model, so that no file of the data is needed.
        """
        return functools.partial(as_evaluated_resized, info=info, resize=self.resize)

    # ---- parts

    def is_light(self, dataset: SegmentationDataset) -> bool:
        return isinstance(dataset.pairs, MemoryPairs) and (dataset.augment is None or dataset.augment.is_light)

    def build(self, name: str, split: SegmentationSplit) -> SegmentationDataset:
        if not len(split.names):
            raise DataError(f"the {name} split has no picture")
        is_train = name == "train"
        pairs: FilePairs | MemoryPairs = FilePairs(split, self.in_chans, self.resize, resize_masks=is_train)
        gigabytes = 0 if split.in_memory else self._estimate(split, is_train) / 1e9
        if split.in_memory or self.cache is True or (self.cache == "auto" and gigabytes <= self.cache_gb):
            good, bad = read_all(pairs, len(split.names), usable_cores())
            what = f"{len(bad)} of {len(split.names):,} {name} pictures are bad and were skipped"
            self.report_bad(list(bad.values()), what)
            if not good:
                raise DataError(f"the {name} split has no picture left")
            pairs, names = MemoryPairs(good), [text for i, text in enumerate(split.names) if i not in bad]
        else:
            log.info("%s pictures are decoded at every read (%.1f GB is over data.cache_gb)", name, gigabytes)
            names = list(split.names)
        log.info("%s: %d pictures", name, len(names))
        return SegmentationDataset(
            pairs, names, self.info, seed=self.seed, skip_bad=self.skip_bad, augment=self.augment if is_train else None
        )

    def _estimate(self, split: SegmentationSplit, is_train: bool) -> int:
        """Bytes of all pictures and masks in memory, from up to 64 file headers; files without one are read."""
        some = range(0, len(split.source), max(1, len(split.source) // 64))
        total = 0
        for i in some:
            source = split.source[i]
            size = header_size(source) if isinstance(source, (str, Path)) else (0, 0)
            if size == (0, 0):  # no picture file, or a broken one, which reading will explain
                try:
                    total += sum(tensor.numel() for tensor in FilePairs(split, self.in_chans, None, False).read(i))
                except DataError:
                    continue
            else:
                height, width = resized(size, self.resize)
                mask = height * width if is_train else size[0] * size[1]
                total += self.in_chans * height * width + mask
        return total * len(split.source) // len(some)


def as_evaluated_resized(
    image: Image.Image, info: DataInfo, resize: int | tuple[int, int] | None
) -> tuple[Tensor, tuple[int, int]]:
    """Any picture -> normalised (C, H, W) of the size that evaluation sees, and the picture's own (H, W)."""
    pixels = to_tensor(image, info.in_chans)
    size = (pixels.shape[-2], pixels.shape[-1])
    wanted = resized(size, resize)
    if wanted != size:
        pixels = F.resize(pixels, list(wanted), antialias=True)
    return info.normalize(pixels), size

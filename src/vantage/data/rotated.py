"""What all data modules for rotated detection share: caching, augmentation, bad samples. A format adds the reading."""

import functools
import logging
from collections.abc import Callable, Sequence

from PIL import Image
from torch import Tensor

from vantage.data.augment import Augment
from vantage.data.dense import DenseData, augment_of
from vantage.data.errors import DataError
from vantage.data.images import to_tensor
from vantage.data.info import DataInfo
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.rotated_dataset import RotatedDataset, RotatedSplit
from vantage.data.rotated_files import read_large_image
from vantage.data.store import FileStore, Store, decode_all, estimate_bytes, pack, usable_cores

log = logging.getLogger(__name__)


class RotatedData(DenseData):
    """Train, val and test loaders of lists of samples, one dict per picture as `RotatedDataset` describes it.

    image_size: the size of training pictures: a random window of larger ones, smaller ones padded with `mean`.
    Evaluation gets pictures whole and of any size; what is too large for a model is the task's to cut and to merge.
    augment: of training samples, a RotatedAugment (configs/augment/rotated*.yaml); {} or None: default_augment.
    """

    tasks = ("rotated_detection",)

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        in_chans: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        eval_batch_size: int | None,
        drop_last: bool,
        num_workers: int | str,
        cache: bool | str,
        cache_gb: float,
        on_bad_sample: str,
        seed: int,
        split_seed: int,
        augment: RotatedAugment | Augment | dict | None,
        default_augment: RotatedAugment | None,
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
        self.augment: RotatedAugment = augment_of(
            RotatedAugment, augment, default_augment, moves="boxes", files="rotated"
        )

    # ---- for tasks and pictures

    def predict_transform(self) -> Callable[[Image.Image], Tensor]:
        """Any PIL picture -> the normalised (C, H, W) that evaluation would see, of the picture's size."""
        return functools.partial(as_evaluated_whole, info=self.info)

    # ---- parts

    def is_light(self, dataset: RotatedDataset) -> bool:
        return not isinstance(dataset.store, FileStore) and (dataset.augment is None or dataset.augment.is_light)

    def build(self, name: str, split: RotatedSplit) -> RotatedDataset:
        if split.source and isinstance(split.source[0], Tensor):
            store: Store = pack(split.source)
        else:
            store, split = self._read(name, split)
        if not len(store):
            raise DataError(f"the {name} split has no sample left")
        log.info("%s: %s", name, split.summary())
        augment = self.augment if name == "train" else None
        return RotatedDataset(store, split, self.info, seed=self.seed, skip_bad=self.skip_bad, augment=augment)

    def _read(self, name: str, split: RotatedSplit) -> tuple[Store, RotatedSplit]:
        """The store of a split of files: decoded now, if that fits into memory, with the bad ones left out."""
        decode = functools.partial(read_large_image, in_chans=self.in_chans)
        gigabytes = estimate_bytes(split.source, self.in_chans, None) / 1e9
        if not (self.cache is True or (self.cache == "auto" and gigabytes <= self.cache_gb)):
            log.info("%s pictures are decoded at every read (%.1f GB is over data.cache_gb)", name, gigabytes)
            return FileStore(split.source, decode), split
        what = f"{len(split.source):,} {name} pictures"
        store, bad = decode_all(split.source, decode, self.in_chans, None, what, usable_cores())
        self.report_bad(list(bad.values()), f"{len(bad)} of {what} are bad and were skipped")
        return store, split.select([i for i in range(len(split.source)) if i not in bad])


def as_evaluated_whole(image: Image.Image, info: DataInfo) -> Tensor:
    """Any picture -> normalised (C, H, W) of its own size."""
    return info.normalize(to_tensor(image, info.in_chans))

"""scikit-learn's handwritten digits: 1,797 scans of 8x8 pixels in 17 grey levels, bundled with it, nothing to fetch.

Source: Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), UCI; the test part of it.
"""

from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits

from vantage.data.augment import Augment
from vantage.data.errors import DataError
from vantage.data.module import ClassificationData, RawSplit
from vantage.data.splits import stratified_split


class Digits(ClassificationData):
    """Split 70/10/20, stratified; the split depends on split_seed only."""

    num_classes = 10  # for what must know it before the data is opened

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 32,
        in_chans: int = 1,
        mean: Sequence[float] = (0.306,),
        std: Sequence[float] = (0.324,),
        interpolation: str = "bilinear",
        center_crop: float = 1.0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        drop_last: bool = True,
        num_workers: int | str = "auto",
        cache: bool | str = "auto",
        cache_gb: float = 2.0,
        on_bad_sample: str = "raise",
        seed: int = 0,
        split_seed: int = 0,
        augment: Augment | dict | None = None,
        default_augment: Augment | None = None,
    ) -> None:
        super().__init__(
            image_size=image_size,
            in_chans=in_chans,
            mean=mean,
            std=std,
            interpolation=interpolation,
            center_crop=center_crop,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            num_workers=num_workers,
            cache=cache,
            cache_gb=cache_gb,
            on_bad_sample=on_bad_sample,
            seed=seed,
            split_seed=split_seed,
            augment=augment,
            default_augment=default_augment,
        )
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise DataError(
                f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} must be > 0 and sum to < 1"
            )
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    def open(self) -> tuple[dict[str, RawSplit], list[str]]:
        scans, labels = load_digits(return_X_y=True)
        pixels = torch.from_numpy(scans * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8)
        everything = RawSplit(pixels, torch.from_numpy(labels).long(), [f"digits/{i:04d}" for i in range(len(labels))])
        val, test, train = stratified_split(everything.labels, [self.val_fraction, self.test_fraction], self.split_seed)
        splits = {"train": everything.select(train), "val": everything.select(val), "test": everything.select(test)}
        return splits, [str(digit) for digit in range(10)]

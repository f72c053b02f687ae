"""DOTA: aerial pictures with oriented boxes, versions 1.0, 1.5 and 2.0.

Paper: DOTA: A Large-scale Dataset for Object Detection in Aerial Images (Xia et al., 2018), arXiv:1711.10398;
Object Detection in Aerial Images: A Large-Scale Benchmark and Challenges (Ding et al., 2021), arXiv:2102.12219.

    root/{train,val}/images/*.png, root/{train,val}/labelTxt/*.txt      as downloaded; test has no labels
    root/train_tiles/...                                                what vantage.data.tile makes of train
"""

from collections.abc import Sequence

from vantage.data.augment import Augment
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.rotated_folder import RotatedFolder

_FIRST = (
    "plane", "baseball-diamond", "bridge", "ground-track-field", "small-vehicle", "large-vehicle", "ship",
    "tennis-court", "basketball-court", "storage-tank", "soccer-ball-field", "roundabout", "harbor", "swimming-pool",
    "helicopter",
)  # fmt: skip

CLASSES = {
    "1.0": _FIRST,
    "1.5": (*_FIRST, "container-crane"),
    "2.0": (*_FIRST, "container-crane", "airport", "helipad"),
}


class Dota(RotatedFolder):
    """A RotatedFolder whose classes and rule for difficult objects follow the version.

    The official evaluation ignores difficult objects in v1.0 and counts them in v1.5 and v2.0;
    count_difficult=None does the same.
    """

    def __init__(
        self,
        *,
        root: str,
        version: str | float = "1.0",
        train: str = "train",
        labels: str = "labelTxt",
        count_difficult: bool | None = None,
        image_size: int | Sequence[int] = 1024,
        in_chans: int = 3,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        val_fraction: float = 0.1,
        batch_size: int = 2,
        eval_batch_size: int | None = 1,
        drop_last: bool = True,
        num_workers: int | str = "auto",
        cache: bool | str = "auto",
        cache_gb: float = 2.0,
        on_bad_sample: str = "raise",
        seed: int = 0,
        split_seed: int = 0,
        augment: RotatedAugment | Augment | dict | None = None,
        default_augment: RotatedAugment | None = None,
    ) -> None:
        version = str(version)  # data.version=1.5 on a command line is a number
        if version not in CLASSES:
            raise DataError(f"data.version={version!r} is not one of {', '.join(CLASSES)}")
        super().__init__(
            root=root,
            train=train,
            labels=labels,
            count_difficult=version != "1.0" if count_difficult is None else count_difficult,
            image_size=image_size,
            in_chans=in_chans,
            mean=mean,
            std=std,
            val_fraction=val_fraction,
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
        self.version = version
        self.num_classes = len(CLASSES[version])  # for what must know it before the data is opened

    def class_names(self) -> list[str]:
        if not self.root.is_dir():
            raise DataNotFoundError(
                f"there is no folder {self.root.absolute()} (data.root={self.root}); DOTA is expected in it as "
                "train/images and train/labelTxt, val/images and val/labelTxt"
            )
        return list(CLASSES[self.version])

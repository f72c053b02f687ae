"""Folders of images: root/train/<class>/*, and root/val/<class>/*, root/test/<class>/* where they exist."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from vantage.data.augment import Augment
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.images import EXTENSIONS
from vantage.data.module import ClassificationData, RawSplit
from vantage.data.splits import stratified_split

log = logging.getLogger(__name__)


class ImageFolder(ClassificationData):
    """Labels follow the sorted names of train's class folders; images may lie in folders of their own below these.

    Without a val folder, val_fraction of train becomes the validation split (stratified by class, cut by split_seed).
    Without a test folder there is no test split, and the log says so.
    Files without an image's extension are counted in the log, hidden files and folders too.
    Colour profiles and EXIF rotation are not applied, as torchvision does not.
    """

    def __init__(
        self,
        *,
        root: str,
        image_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        interpolation: str = "bilinear",
        center_crop: float = 1.0,
        val_fraction: float = 0.05,
        batch_size: int = 128,
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
        if not 0 <= val_fraction < 1:
            raise DataError(f"data.val_fraction={val_fraction} is not in [0, 1)")
        self.root, self.val_fraction = Path(root), val_fraction

    def open(self) -> tuple[dict[str, RawSplit], list[str]]:
        train_folder = self.root / "train"
        if not train_folder.is_dir():
            raise DataNotFoundError(
                f"there is no folder {train_folder.absolute()} (data.root={self.root}); "
                "images are expected in data.root/train/<class>/"
            )
        classes = sorted(entry.name for entry in os.scandir(train_folder) if _is_class_folder(entry))
        if not classes:
            raise DataError(f"{train_folder} has no class folders; images are expected in data.root/train/<class>/")
        class_names = self.class_names(classes)
        splits = {"train": self._scan("train", classes)}
        for split in ("val", "test"):
            if (self.root / split).is_dir():
                splits[split] = self._scan(split, classes)
        self._complete(splits)
        return splits, class_names

    def class_names(self, classes: list[str]) -> list[str]:
        """What to call the class folders."""
        return classes

    def _complete(self, splits: dict[str, RawSplit]) -> None:
        if "val" not in splits:
            self._cut_validation(splits)
        if "test" not in splits:
            log.warning("there is no folder %s: nothing can be tested", self.root / "test")

    def _cut_validation(self, splits: dict[str, RawSplit]) -> None:
        if self.val_fraction == 0:
            log.warning("data.val_fraction=0 and there is no folder %s: nothing is validated", self.root / "val")
            return
        train = splits["train"]
        val, rest = stratified_split(train.labels, [self.val_fraction], self.split_seed)
        if not len(val):
            raise DataError(
                f"data.val_fraction={self.val_fraction} of {len(train.labels)} training images leaves none to "
                "validate on; use a larger fraction or a val folder"
            )
        splits["train"], splits["val"] = train.select(rest), train.select(val)

    def _scan(self, split: str, classes: list[str]) -> RawSplit:
        folder = self.root / split
        found = {entry.name for entry in os.scandir(folder) if _is_class_folder(entry)}
        unknown = sorted(found.difference(classes))
        if unknown:
            raise DataError(
                f"{folder / unknown[0]} is a class that {self.root / 'train'} does not have; "
                f"remove the folder or add the class to train ({len(unknown)} such folders)"
            )
        paths, labels = [], []
        others = [entry.path for entry in os.scandir(folder) if not _is_class_folder(entry)]
        for label, name in enumerate(classes):
            images, rest = _list_files(folder / name)
            others.extend(rest)
            if not images and split == "train":
                raise DataError(f"class folder {folder / name} holds no image ({_known()}); fill or remove it")
            if not images:
                log.warning("%s has no image of class %s", folder, name)
            paths.extend(images)
            labels.extend([label] * len(images))
        if others:
            log.warning(
                "%s: ignored %d files that are not images (%s) or lie in no class folder, the first is %s",
                folder,
                len(others),
                _known(),
                others[0],
            )
        if not paths:
            raise DataError(f"{folder} holds no image in a class folder ({_known()}); fill or remove it")
        names = [os.path.relpath(path, self.root) for path in paths]
        return RawSplit(paths, torch.tensor(labels, dtype=torch.int64), names)


def _known() -> str:
    return " ".join(sorted(EXTENSIONS))


def _is_class_folder(entry: os.DirEntry) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _list_files(folder: Path) -> tuple[list[str], list[str]]:
    """Image files below a folder, sorted, and all other files."""
    images, others = [], []
    for parent, folders, files in os.walk(folder, followlinks=True):
        others.extend(os.path.join(parent, name) for name in folders if name.startswith("."))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            is_image = not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
            (images if is_image else others).append(os.path.join(parent, name))
    return sorted(images), sorted(others)

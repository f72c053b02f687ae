"""Your own pictures with masks.

root/classes.txt          a class per line, in label order: `road`, or with its colour `road 128 64 128`
root/train/images/*       pictures of any format
root/train/masks/*        one for every picture, with the same name: one class index per pixel (grey or palette), or,
                          where classes.txt gives colours, the colours
root/val/..., root/test/...    where they exist
or root/images/ and root/masks/ without train/: then validation is cut from them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vantage.data.augment import Augment
from vantage.data.base import require
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.mask_files import first_folder, pair_masks
from vantage.data.masks import IGNORE, MOST_CLASSES, Colours, Encoding, Indices, Threshold, open_mask
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.segmentation_augment import SegmentationAugment
from vantage.data.segmentation_dataset import SegmentationSplit
from vantage.data.segmentation_files import SegmentationFiles


class MaskFolder(SegmentationFiles):
    """reduce_zero: 0 is ignored and 1..K are the classes. threshold: two classes, the second where a mask is brighter
    (drawings saved as JPEG have grey rims). A class called `ignore` is none: what it names, an index or a colour, is
    ignored, and so is index 255.
    """

    layout = "classes.txt, train/images/, train/masks/ and, where they exist, the same below val/ and test/"

    def __init__(
        self,
        *,
        root: str,
        reduce_zero: bool = False,
        threshold: int | None = None,
        val_fraction: float = 0.1,
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
            root=root,
            val_fraction=val_fraction,
            image_size=image_size,
            resize=resize,
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
            augment=augment,
            default_augment=default_augment,
        )
        require(threshold is None or 0 <= threshold < 255, "threshold", threshold, "null or in 0..254")
        self.reduce_zero, self.threshold = reduce_zero, threshold
        self._classes: dict[str, tuple[int, int, int] | None] | None = None

    @property
    def classes(self) -> dict[str, tuple[int, int, int] | None]:
        """Name -> colour, in label order."""
        if self._classes is None:
            self._classes = read_classes(self.root)
        return self._classes

    def class_names(self) -> list[str]:
        return [name for name in self.classes if name != "ignore"]

    def palette(self) -> list[list[int]] | None:
        colours = [list(colour) for name, colour in self.classes.items() if colour and name != "ignore"]
        return colours or None

    def encoding(self) -> Encoding:
        names = self.class_names()
        if self.threshold is not None:
            if len(names) != 2:
                raise DataError(
                    f"data.threshold={self.threshold} makes two classes, and {self.root / 'classes.txt'} has "
                    f"{len(names)}; leave it out, or list two"
                )
            return Threshold(self.threshold)
        if self.palette():
            labels = {colour: names.index(name) for name, colour in self.classes.items() if name != "ignore"}
            return Colours(labels | ({self.classes["ignore"]: IGNORE} if "ignore" in self.classes else {}))
        first = 1 if self.reduce_zero else 0
        labels = {first + i: IGNORE if name == "ignore" else names.index(name) for i, name in enumerate(self.classes)}
        return Indices({0: IGNORE, IGNORE: IGNORE} | labels)

    def scan(self, split: str) -> SegmentationSplit | None:
        folder = self.root / split
        if not folder.is_dir():
            if split != "train":
                return None
            if (self.root / "images").is_dir():
                folder = self.root
        images, masks = first_folder(folder, "images", "image"), first_folder(folder, "masks", "mask")
        pairs, bad = pair_masks(images, masks, hint=self.expected)
        encoding = self.encoding()
        if isinstance(encoding, Indices) and len(self.class_names()) == 2:
            refuse_black_and_white([mask for _, _, mask in pairs])
        return self.files(pairs, bad, encoding, folder)


def refuse_black_and_white(masks: Sequence[str]) -> None:
    """Raises: DataError if masks of two classes hold 0 and 255, of which one would be ignored, and nothing else.

    One mask may well have no pixel of the second class; that none of a few from all over the split has any means that
    white is the class.
    """
    found, white = set(), ""
    for mask in masks[:: max(1, len(masks) // 8)]:
        try:
            values = set(np.unique(np.asarray(open_mask(mask))).tolist())
        except DataError:
            continue  # reading it will explain
        found |= values
        white = white or (mask if IGNORE in values else "")
    if found == {0, IGNORE}:
        raise DataError(
            f"{white}: holds 0 and 255, like every mask that was looked at, and 255 is ignored; give "
            "data.threshold=127 if white is the second class"
        )


def read_classes(root: Path) -> dict[str, tuple[int, int, int] | None]:
    """classes.txt: name -> colour or None. Raises: DataError naming the line."""
    path = root / "classes.txt"
    if not root.is_dir():
        raise DataNotFoundError(
            f"there is no folder {root.absolute()} (data.root={root}); expected in it: {MaskFolder.layout}"
        )
    if not path.is_file():
        raise DataNotFoundError(f"{path} is missing; write the classes into it, one per line, in label order")
    classes: dict[str, tuple[int, int, int] | None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        name, colour = line.strip(), None
        if len(words) >= 4 and all(word.isdecimal() for word in words[-3:]):
            name, colour = " ".join(words[:-3]), tuple(int(word) for word in words[-3:])
            if max(colour) > 255:
                raise DataError(f"{path}, line {number}: the colour {colour} has a value above 255")
        if name in classes:
            raise DataError(f"{path}, line {number}: names the class {name!r} twice")
        if colour is not None and colour in classes.values():
            raise DataError(f"{path}, line {number}: gives {name!r} a colour that another class has, {colour}")
        classes[name] = colour
    coloured = [name for name, colour in classes.items() if colour]
    if coloured and len(coloured) != len(classes):
        without = next(name for name, colour in classes.items() if not colour)
        raise DataError(f"{path}: {coloured[0]!r} has a colour and {without!r} has none; give all of them one, or none")
    if not 1 <= len([name for name in classes if name != "ignore"]) <= MOST_CLASSES:
        raise DataError(f"{path} names {len(classes)} classes; 1 to {MOST_CLASSES} are possible")
    return classes

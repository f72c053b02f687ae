"""PASCAL VOC 2012: 1,464 (with SBD's labels 10,582) and 1,449 photographs in 20 classes and background.

root/JPEGImages/<name>.jpg
root/SegmentationClass/<name>.png              palette pictures, of which the indices count: 0..20, 255 at the rims
root/SegmentationClassAug/<name>.png           the labels of SBD as indices, for train_set=aug
root/ImageSets/Segmentation/train.txt, val.txt, and for train_set=aug one of AUG_LISTS
or the same in root/VOC2012 or root/VOCdevkit/VOC2012. Test labels are not public.

Everingham et al., 2015, The Pascal Visual Object Classes Challenge: A Retrospective; SBD: Hariharan et al., 2011,
Semantic Contours from Inverse Detectors. http://host.robots.ox.ac.uk/pascal/VOC/voc2012 has the files; the pictures are
from flickr and under its terms.
"""

from collections.abc import Sequence
from pathlib import Path

from vantage.data.augment import Augment
from vantage.data.base import require
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.mask_files import first_folder
from vantage.data.masks import Indices
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.segmentation_augment import SegmentationAugment
from vantage.data.segmentation_dataset import SegmentationSplit
from vantage.data.tested_on_val import TestedOnVal

CLASSES = {
    "background": (0, 0, 0),
    "aeroplane": (128, 0, 0),
    "bicycle": (0, 128, 0),
    "bird": (128, 128, 0),
    "boat": (0, 0, 128),
    "bottle": (128, 0, 128),
    "bus": (0, 128, 128),
    "car": (128, 128, 128),
    "cat": (64, 0, 0),
    "chair": (192, 0, 0),
    "cow": (64, 128, 0),
    "diningtable": (192, 128, 0),
    "dog": (64, 0, 128),
    "horse": (192, 0, 128),
    "motorbike": (64, 128, 128),
    "person": (192, 128, 128),
    "pottedplant": (0, 64, 0),
    "sheep": (128, 64, 0),
    "sofa": (0, 192, 0),
    "train": (128, 192, 0),
    "tvmonitor": (0, 64, 128),
}
# all 10,582 names, or, in the last, those that train.txt lacks
AUG_LISTS = ("trainaug.txt", "train_aug.txt", "aug.txt")


class Voc2012(TestedOnVal):
    """train_set: train, or aug: the names of AUG_LISTS and of train.txt. VOC's own mask of a picture, which has ignored
    rims, comes before SBD's.
    """

    num_classes = len(CLASSES)  # for what must know it before the data is opened
    layout = "JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/{train,val}.txt"

    def __init__(
        self,
        *,
        root: str,
        train_set: str = "train",
        val_fraction: float = 0.0,
        image_size: int | Sequence[int] = 512,
        resize: int | Sequence[int] | None = None,
        in_chans: int = 3,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        batch_size: int = 16,
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
        require(train_set in ("train", "aug"), "train_set", train_set, "train or aug")
        self.train_set = train_set

    def class_names(self) -> list[str]:
        return list(CLASSES)

    def palette(self) -> list[list[int]]:
        return [list(colour) for colour in CLASSES.values()]

    @property
    def folder(self) -> Path:
        return first_folder(self.root, "VOCdevkit/VOC2012", "VOC2012", ".")

    def scan(self, split: str) -> SegmentationSplit | None:
        lists = self.folder / "ImageSets" / "Segmentation"
        if split == "test" or (split == "val" and not (lists / "val.txt").is_file()):
            return None
        folders = ["SegmentationClass"]
        names, told = self.names_in(lists / f"{split}.txt"), lists / f"{split}.txt"
        if split == "train":
            if self.train_set == "aug":
                folders.append("SegmentationClassAug")
                told = next((lists / name for name in AUG_LISTS if (lists / name).is_file()), None)
                if told is None:
                    raise DataNotFoundError(
                        f"there is none of {', '.join(AUG_LISTS)} in {lists}, which data.train_set=aug needs; use "
                        "data.train_set=train, or add the list and SegmentationClassAug/"
                    )
                names = sorted({*names, *self.names_in(told)})
            self._refuse_overlap(names, told, lists / "val.txt")
        pairs, bad = [], []
        for name in names:
            image = self.folder / "JPEGImages" / f"{name}.jpg"
            masks = [self.folder / folder / f"{name}.png" for folder in folders]
            mask = next((path for path in masks if path.is_file()), None)
            if not image.is_file():
                bad.append(f"{told}: names {name!r}, but there is no picture {image}")
            elif mask is None:
                bad.append(f"{image}: has no mask {' or '.join(map(str, masks))}")
            else:
                pairs.append((name, str(image), str(mask)))
        return self.files(pairs, bad, Indices.plain(len(CLASSES)), told)

    def names_in(self, path: Path) -> list[str]:
        """The pictures of a list: lines `2007_000032`, or `/JPEGImages/2007_000032.jpg /SegmentationClassAug/...`."""
        if not path.is_file():
            raise DataNotFoundError(f"there is no file {path.absolute()}{self.expected}")
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        return [Path(words[0]).stem for words in lines if words]

    def _refuse_overlap(self, names: Sequence[str], told: Path, val: Path) -> None:
        both = sorted(set(names) & set(self.names_in(val))) if val.is_file() else []
        if both:
            raise DataError(
                f"{told}: names {both[0]!r}, which {val} names too ({len(both)} in both), so that what is validated "
                "would be trained on; take them out of one of the lists"
            )

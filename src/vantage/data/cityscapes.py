"""Cityscapes: 2,975 and 500 pictures of 2048x1024 from a car, of 21 cities, in 19 classes.

root/leftImg8bit/<split>/<city>/<name>_leftImg8bit.png
root/gtFine/<split>/<city>/<name>_gtFine_labelTrainIds.png      0..18, and 255 to ignore
                            or <name>_gtFine_labelIds.png       as downloaded: 0..33, of which 19 are classes

<split> is train or val. Labels of test are not public: its files are empty, and it is not looked at.

Cordts et al., 2016, arXiv:1604.01685; classes, colours and label ids are those of its toolkit,
https://github.com/mcordts/cityscapesScripts (helpers/labels.py). Its licence plates, of id -1, are not drawn: files
hold the car behind them. For those who register, for research; terms at https://www.cityscapes-dataset.com/license.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vantage.data.mask_files import list_by_name, pair_masks
from vantage.data.masks import IGNORE, Indices
from vantage.data.segmentation_dataset import SegmentationSplit
from vantage.data.tested_on_val import TestedOnVal

CLASSES = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of the classes, of 0..33
TRAIN_IDS = Indices.plain(len(CLASSES))
LABEL_IDS = Indices(
    dict.fromkeys([*range(max(IDS) + 1), IGNORE], IGNORE) | {value: label for label, value in enumerate(IDS)}
)


@dataclass(frozen=True)
class CityscapesLabels:
    """The encoding that a file's name tells."""

    def read(self, path: str | Path) -> Tensor:
        return (TRAIN_IDS if Path(path).stem.endswith("_labelTrainIds") else LABEL_IDS).read(path)


class Cityscapes(TestedOnVal):
    """val_fraction cuts whole cities, as the official split does."""

    num_classes = len(CLASSES)  # for what must know it before the data is opened
    layout = "leftImg8bit/<split>/<city>/*_leftImg8bit.png and gtFine/<split>/<city>/*_gtFine_label(Train)Ids.png"

    def class_names(self) -> list[str]:
        return list(CLASSES)

    def palette(self) -> list[list[int]]:
        return [list(colour) for colour in CLASSES.values()]

    def group_of(self, name: str) -> str:
        return name.split("/")[0]

    def stem_of_mask(self, name: str) -> str:
        """The name of a picture's masks up to what tells their encoding."""
        return f"{name.removesuffix('_leftImg8bit')}_gtFine"

    def scan(self, split: str) -> SegmentationSplit | None:
        images, masks = self.root / "leftImg8bit" / split, self.root / "gtFine" / split
        if split == "test" or (split == "val" and not images.is_dir()):
            return None
        labels = list_by_name(masks)

        def name_of_mask(name: str) -> str:
            train_ids = f"{self.stem_of_mask(name)}_labelTrainIds"
            return train_ids if train_ids in labels else f"{self.stem_of_mask(name)}_labelIds"

        pairs, bad = pair_masks(images, masks, name_of_mask=name_of_mask, hint=self.expected, only_masks=False)
        return self.files(pairs, bad, CityscapesLabels(), images)

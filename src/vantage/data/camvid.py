"""CamVid in SegNet's form: 367, 101 and 233 street pictures of 480x360 in 11 classes; 11 is void.

root/train/*.png     root/trainannot/*.png
root/val/*.png       root/valannot/*.png
root/test/*.png      root/testannot/*.png       if it is there

Brostow et al., 2009, Semantic object classes in video; the 11 classes and the split are those of SegNet
(Badrinarayanan et al., 2017, arXiv:1511.00561). Pictures of any format.
"""

from vantage.data.mask_files import pair_masks
from vantage.data.masks import IGNORE, Indices
from vantage.data.segmentation_dataset import SegmentationSplit
from vantage.data.segmentation_files import SegmentationFiles

CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
VOID = 11


class CamVid(SegmentationFiles):
    num_classes = len(CLASSES)  # for what must know it before the data is opened
    layout = "train/, trainannot/, val/, valannot/ and, if there is one, test/, testannot/"

    def class_names(self) -> list[str]:
        return list(CLASSES)

    def palette(self) -> list[list[int]]:
        return [list(colour) for colour in CLASSES.values()]

    def scan(self, split: str) -> SegmentationSplit | None:
        images, masks = self.root / split, self.root / f"{split}annot"
        if not images.is_dir() and split != "train":
            return None
        pairs, bad = pair_masks(images, masks, hint=self.expected)
        encoding = Indices({value: value for value in range(len(CLASSES))} | {VOID: IGNORE, IGNORE: IGNORE})
        return self.files(pairs, bad, encoding, images)

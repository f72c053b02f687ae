"""LoveDA: 2,522 and 1,669 pictures of 1024x1024 from above (0.3 m per pixel), of land in three cities of China.

root/{Train,Val}/{Rural,Urban}/images_png/*.png     root/{Train,Val}/{Rural,Urban}/masks_png/*.png      as released
root/img_dir/{train,val}/*.png                      root/ann_dir/{train,val}/*.png                      or as converted

In a mask 0 has no data and is ignored, 1..7 are the classes. Labels of Test are not public; in the second form a folder
ann_dir/test would be tested.

Wang et al., 2021, arXiv:2110.08733; classes and colours are those of https://github.com/Junjue-Wang/LoveDA. CC BY-NC-SA
4.0, for academic use.
"""

from pathlib import Path

from vantage.data.mask_files import pair_masks
from vantage.data.masks import Indices
from vantage.data.segmentation_dataset import SegmentationSplit
from vantage.data.tested_on_val import TestedOnVal

CLASSES = {
    "background": (255, 255, 255),
    "building": (255, 0, 0),
    "road": (255, 255, 0),
    "water": (0, 0, 255),
    "barren": (159, 129, 183),
    "forest": (0, 255, 0),
    "agricultural": (255, 195, 128),
}
REGIONS = ("Rural", "Urban")


class LoveDa(TestedOnVal):
    num_classes = len(CLASSES)  # for what must know it before the data is opened
    layout = "{Train,Val}/{Rural,Urban}/{images_png,masks_png}/, or img_dir/{train,val}/ and ann_dir/{train,val}/"

    def class_names(self) -> list[str]:
        return list(CLASSES)

    def palette(self) -> list[list[int]]:
        return [list(colour) for colour in CLASSES.values()]

    def scan(self, split: str) -> SegmentationSplit | None:
        converted = (self.root / "img_dir").is_dir()
        where = self.root / "img_dir" / split if converted else self.root / split.capitalize()
        folders = [("", where, self.root / "ann_dir" / split)] if converted else self.regions(where)
        if split != "train" and not any(masks.is_dir() for _, _, masks in folders):
            return None
        pairs, bad = [], []
        for region, images, masks in folders:
            found, lacking = pair_masks(images, masks, hint=self.expected)
            pairs += [(f"{region}{name}", image, mask) for name, image, mask in found]
            bad += lacking
        return self.files(pairs, bad, Indices.without_zero(len(CLASSES)), where)

    def regions(self, folder: Path) -> list[tuple[str, Path, Path]]:
        """(prefix of names, pictures, masks) of the regions that are there; of both if none is, for an error."""
        found = [region for region in REGIONS if (folder / region).is_dir()] or REGIONS
        return [(f"{region}/", folder / region / "images_png", folder / region / "masks_png") for region in found]

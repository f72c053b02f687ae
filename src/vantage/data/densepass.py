"""DensePASS: 100 street panoramas of 2048x400, 360 degrees around, in the 19 classes of Cityscapes, to test on.

root/leftImg8bit/val/cs/<name>.png or <name>_.png
root/gtFine/val/cs/<name>_labelTrainIds.png            0..18, and 255 to ignore

Left and right edge are neighbours. There are no labels to train with: the field trains on Cityscapes, or adapts to
panoramas without labels, which some downloads have in leftImg8bit/train. Labels of your own belong in gtFine/train.

Ma et al., 2021, DensePASS, arXiv:2108.06383; https://github.com/chma1024/DensePASS links the files. The names are those
that https://github.com/jamycheung/Trans4PASS reads. For research.
"""

from vantage.data.cityscapes import Cityscapes
from vantage.data.errors import DataError
from vantage.data.segmentation_dataset import SegmentationSplit


class DensePass(Cityscapes):
    wraps = True
    layout = "leftImg8bit/val/cs/*.png and gtFine/val/cs/*_labelTrainIds.png"

    def group_of(self, name: str) -> str:
        return name  # its folders are no cities that were left out

    def stem_of_mask(self, name: str) -> str:
        return name.removesuffix("_")

    def scan(self, split: str) -> SegmentationSplit | None:
        if split == "train" and not (self.root / "gtFine" / "train").is_dir():
            raise DataError(
                f"there is no folder {self.root / 'gtFine' / 'train'}: DensePASS has no labels to train with; train "
                "with data=cityscapes, and test with eval.py run=RUN_DIR data=densepass"
            )
        return super().scan(split)

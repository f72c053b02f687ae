"""ISIC 2018, tasks 1 and 2: 2594, 100 and 1000 dermoscopic pictures of many sizes with the outline of one lesion each.

root/ISIC2018_Task1-2_Training_Input/ISIC_#.jpg       root/ISIC2018_Task1_Training_GroundTruth/ISIC_#_segmentation.png
root/ISIC2018_Task1-2_Validation_Input/...            root/ISIC2018_Task1_Validation_GroundTruth/...
root/ISIC2018_Task1-2_Test_Input/...                  root/ISIC2018_Task1_Test_GroundTruth/...

Without the two folders of Validation it is cut from Training; without those of Test nothing is tested. Masks are 0 and
255; 1 counts as 255, for that is how one-bit files read. Other values, of masks that were resized with smoothing, are
errors. Other files in the folders (ATTRIBUTION.txt, LICENSE.txt) are not looked at.

Codella et al., 2019, arXiv:1902.03368; Tschandl et al., 2018, arXiv:1803.10417. https://challenge.isic-archive.com/data
has the files; their LICENSE.txt and ATTRIBUTION.txt are the terms.
"""

import logging

from vantage.data.mask_files import pair_masks
from vantage.data.masks import Indices
from vantage.data.segmentation_dataset import SegmentationSplit
from vantage.data.segmentation_files import SegmentationFiles

log = logging.getLogger(__name__)

CLASSES = ("background", "lesion")
PARTS = {"train": "Training", "val": "Validation", "test": "Test"}


class Isic2018(SegmentationFiles):
    num_classes = len(CLASSES)  # for what must know it before the data is opened
    layout = (
        "ISIC2018_Task1-2_Training_Input/, ISIC2018_Task1_Training_GroundTruth/ and, where they exist, the same of "
        "Validation and Test"
    )

    def class_names(self) -> list[str]:
        return list(CLASSES)

    def scan(self, split: str) -> SegmentationSplit | None:
        images = self.root / f"ISIC2018_Task1-2_{PARTS[split]}_Input"
        masks = self.root / f"ISIC2018_Task1_{PARTS[split]}_GroundTruth"
        if split != "train" and not (images.is_dir() and masks.is_dir()):
            if images.is_dir():
                log.warning("%s is not used: there is no folder %s", images, masks)
            return None
        pairs, bad = pair_masks(images, masks, name_of_mask=lambda name: f"{name}_segmentation")
        return self.files(pairs, bad, Indices({0: 0, 1: 1, 255: 1}), images)

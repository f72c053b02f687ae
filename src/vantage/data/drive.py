"""DRIVE: 20 and 20 photographs of the retina, 565x584, with every vessel drawn.

root/training/images/21_training.tif    1st_manual/21_manual1.gif    mask/21_training_mask.gif
root/test/images/01_test.tif            1st_manual/01_manual1.gif    mask/01_test_mask.gif

`mask` is the camera's round field of view: what lies outside is ignored, in training and in scores. Not every download
has test/1st_manual; without it nothing is tested. Validation is cut from training. 2nd_manual, a second observer, is
not looked at. White is what is brighter than 127, for some copies have grey rims.

Staal et al., 2004, Ridge-based vessel segmentation in color images of the retina. https://drive.grand-challenge.org has
the files, for those who register, and the terms.
"""

import logging
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.mask_files import KNOWN, list_by_name, pair_masks
from vantage.data.masks import IGNORE, Threshold
from vantage.data.segmentation_dataset import SegmentationSplit
from vantage.data.segmentation_files import SegmentationFiles

log = logging.getLogger(__name__)

CLASSES = ("background", "vessel")
FOLDERS = {"train": "training", "test": "test"}
WHITE = Threshold(127)


class Drive(SegmentationFiles):
    num_classes = len(CLASSES)  # for what must know it before the data is opened
    layout = "training/ and test/, each with images/, 1st_manual/ and mask/"

    def class_names(self) -> list[str]:
        return list(CLASSES)

    def scan(self, split: str) -> SegmentationSplit | None:
        if split not in FOLDERS:
            return None
        folder = self.root / FOLDERS[split]
        if split == "test" and not list_by_name(folder / "1st_manual"):
            log.info("%s has no drawings of vessels, which not every download has", folder / "1st_manual")
            return None
        # 21_training -> 21_manual1
        pairs, bad = pair_masks(
            folder / "images", folder / "1st_manual", name_of_mask=lambda name: f"{name.split('_')[0]}_manual1"
        )
        fields = find_fields(folder / "mask")
        triples = []
        for name, image, drawn in pairs:
            if f"{name}_mask" in fields:
                triples.append((name, image, (drawn, fields[f"{name}_mask"])))
            else:
                bad.append(f"{image}: has no field of view {folder / 'mask' / name}_mask.* ({KNOWN})")
        return replace(self.files(triples, bad, WHITE, folder), read_mask=read_inside)


def find_fields(folder: Path) -> dict[str, str]:
    """Name -> file of a field of view."""
    if not folder.is_dir():
        raise DataNotFoundError(
            f"there is no folder {folder.absolute()}; fields of view are expected in it, 21_training_mask.gif and so on"
        )
    return {name: files[0] for name, files in list_by_name(folder).items()}


def read_inside(files: tuple[str, str]) -> Tensor:
    """(drawing, field of view) -> mask, ignored outside the field. Raises: DataError if their sizes differ."""
    mask, inside = (WHITE.read(file) for file in files)
    if mask.shape != inside.shape:
        (height, width), (rows, columns) = mask.shape, inside.shape
        raise DataError(f"{files[0]}: is {width}x{height} and its field of view {files[1]} is {columns}x{rows}")
    return mask.masked_fill(inside == 0, IGNORE)

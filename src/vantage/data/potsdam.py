"""ISPRS Potsdam: 38 pictures of 6000x6000 from above (5 cm per pixel), 24 to train and 14 to test.

root/img_dir/{train,val}/*                  root/ann_dir/{train,val}/*

Files are tiles of one name on both sides (2_10_0_0_512_512.png), or the release's whole pictures, which evaluation cuts
into tiles by itself: top_potsdam_2_10_RGB.tif with top_potsdam_2_10_label.tif or top_potsdam_2_10_label_noBoundary.tif.
Masks are of colours, in which black is ignored, or grey: 0 is ignored, 1..6 are the classes. A folder ann_dir/test
would be tested; otherwise val is, which holds the 14 pictures of the contest's test.

Rottensteiner et al., 2014, Results of the ISPRS benchmark on urban object detection and 3D building reconstruction.
Layout and split are those that mmsegmentation's converter writes. On request, for research, at
https://www.isprs.org/education/benchmarks/UrbanSemLab.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from vantage.data.mask_files import list_by_name, pair_masks
from vantage.data.masks import IGNORE, Colours, Indices
from vantage.data.segmentation_dataset import SegmentationSplit
from vantage.data.tested_on_val import TestedOnVal

CLASSES = {
    "impervious surface": (255, 255, 255),
    "building": (0, 0, 255),
    "low vegetation": (0, 255, 255),
    "tree": (0, 255, 0),
    "car": (255, 255, 0),
    "clutter": (255, 0, 0),
}
# Two released files are off: 4_12 has 24,850 colours, such as (9, 222, 221), and the cars of 6_7 are (252, 255, 0). No
# value of any file comes within 40 of 127, so that this is never a guess.
TOLERANCE = 87
COLOURS = Colours({colour: i for i, colour in enumerate(CLASSES.values())} | {(0, 0, 0): IGNORE}, TOLERANCE)
INDICES = Indices.without_zero(len(CLASSES))


@dataclass(frozen=True)
class PotsdamLabels:
    """Colours where a file has several channels, else indices."""

    def read(self, path: str | Path) -> Tensor:
        return (COLOURS if is_coloured(path) else INDICES).read(path)


class Potsdam(TestedOnVal):
    """val_fraction cuts whole pictures: the tiles of one stay together."""

    num_classes = len(CLASSES)  # for what must know it before the data is opened
    layout = "img_dir/<split>/ and ann_dir/<split>/ for the splits train and val"

    def class_names(self) -> list[str]:
        return list(CLASSES)

    def palette(self) -> list[list[int]]:
        return [list(colour) for colour in CLASSES.values()]

    def group_of(self, name: str) -> str:
        return "_".join(name.removeprefix("top_potsdam_").split("_")[:2])

    def scan(self, split: str) -> SegmentationSplit | None:
        images, masks = self.root / "img_dir" / split, self.root / "ann_dir" / split
        if split != "train" and not masks.is_dir():
            return None
        name_of_mask = mask_among(list_by_name(masks))
        pairs, bad = pair_masks(images, masks, name_of_mask=name_of_mask, hint=self.expected)
        return self.files(pairs, bad, PotsdamLabels(), images)


def is_coloured(path: str | Path) -> bool:
    try:
        with Image.open(path) as image:
            return len(image.getbands()) > 1
    except Exception:
        return False  # reading will explain


def mask_among(names: dict[str, list[str]]) -> Callable[[str], str]:
    """From a picture's name to that of its mask, which is one of `names`."""

    def name_of_mask(name: str) -> str:
        stem = name.removesuffix("_RGB")
        wanted = [name, f"{stem}_label", f"{stem}_label_noBoundary"]
        return next((each for each in wanted if each in names), wanted[0])

    return name_of_mask

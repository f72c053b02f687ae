"""Photographs that scikit-image and scikit-learn bring along: nothing to download, a smoke test and no benchmark.

Train: coffee, chelsea, flower, brick, grass, gravel, retina. Validate and test: astronaut, china, motorcycle_left.
Each is averaged over 2x2 pixels first, which removes most of what JPEG or a sensor's mosaic left in it; brick, grass
and gravel are grey. At larger scales pictures that are smaller than a patch are left out.

Licences: coffee, chelsea, brick, grass, gravel and retina CC0; astronaut NASA, public domain; motorcycle_left from the
Middlebury stereo data set (Scharstein et al., 2014). china.jpg by danielbuechele and flower.jpg from the pages of
vultilion, both on Flickr, CC-BY 2.0, are told in scikit-learn's datasets/images/README.txt.
"""

import logging
from pathlib import Path

import skimage
import sklearn.datasets
from torch import Tensor

from vantage.data.errors import DataError
from vantage.data.images import read_image
from vantage.data.super_resolution import SuperResolutionData
from vantage.data.super_resolution_dataset import PicturePair

log = logging.getLogger(__name__)

SPLITS = {
    "train": ("coffee.png", "chelsea.png", "flower.jpg", "brick.png", "grass.png", "gravel.png", "retina.jpg"),
    "val": ("astronaut.png", "china.jpg", "motorcycle_left.png"),
}
OF_SCIKIT_LEARN = ("china.jpg", "flower.jpg")


class Photos(SuperResolutionData):
    def find(self, split: str) -> list[PicturePair] | None:
        if split not in SPLITS:
            return None
        if self.lr == "files":
            raise DataError("data.lr=files, and the photographs have no LR files; use data.lr=make")
        log.info("smoke-test photographs: numbers on them are no benchmark")
        pictures = {Path(file).stem: halved(read_image(place(file), self.in_chans)) for file in SPLITS[split]}
        pairs = [PicturePair(name, picture) for name, picture in pictures.items()]
        if split != "train":
            return pairs
        patch = [self.scale * side for side in self.image_size]
        fits = [pair for pair in pairs if pair.high.shape[1] >= patch[0] and pair.high.shape[2] >= patch[1]]
        left_out = sorted(pictures.keys() - {pair.name for pair in fits})
        if fits and left_out:
            log.info("%s: left out, smaller than a patch of %dx%d", ", ".join(left_out), *reversed(patch))
        return fits or pairs  # if none fits, the check of sizes will say so


def place(file: str) -> Path:
    if file in OF_SCIKIT_LEARN:
        return Path(sklearn.datasets.__file__).parent / "images" / file
    return Path(skimage.__file__).parent / "data" / file


def halved(picture: Tensor) -> Tensor:
    """uint8 (C, H, W) -> (C, H // 2, W // 2), means of 2x2 pixels, halves rounded up."""
    height, width = (side // 2 * 2 for side in picture.shape[1:])
    wide = picture[:, :height, :width].int()
    total = wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2]
    return ((total + 2) // 4).byte()

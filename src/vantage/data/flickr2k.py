"""Flickr2K: 2,650 pictures of about 2 megapixels to train on.

root/Flickr2K_HR/000001.png   root/Flickr2K_LR_bicubic/X4/000001x4.png

Lim et al., 2017, EDSR, arXiv:1707.02921. It has nothing to validate on: data.val_root may name DIV2K_valid_HR.
"""

from pathlib import Path

from vantage.data.super_resolution_dataset import PicturePair
from vantage.data.super_resolution_files import SuperResolutionFiles, by_scale


class Flickr2K(SuperResolutionFiles):
    layout = "Flickr2K_HR/000001.png and, for lr=files, Flickr2K_LR_bicubic/X4/000001x4.png"

    def scan(self, split: str) -> list[PicturePair] | None:
        return flickr2k_pairs(self, self.root, split)


def flickr2k_pairs(data: SuperResolutionFiles, root: Path, split: str) -> list[PicturePair] | None:
    if split != "train":
        return None
    return data.pairs(root / "Flickr2K_HR", by_scale(root / "Flickr2K_LR_bicubic", data.scale))

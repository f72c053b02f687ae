"""DF2K: DIV2K and Flickr2K, 3,450 pictures to train on and DIV2K's 100 to validate.

root/DIV2K/...   root/Flickr2K/...     each in its own layout, see vantage.data.div2k and vantage.data.flickr2k
"""

from vantage.data.div2k import div2k_pairs
from vantage.data.flickr2k import flickr2k_pairs
from vantage.data.super_resolution_dataset import PicturePair
from vantage.data.super_resolution_files import SuperResolutionFiles


class DF2K(SuperResolutionFiles):
    layout = "DIV2K/DIV2K_train_HR/0001.png, DIV2K/DIV2K_valid_HR/0801.png, Flickr2K/Flickr2K_HR/000001.png"

    def scan(self, split: str) -> list[PicturePair] | None:
        parts = [
            div2k_pairs(self, self.root / "DIV2K", split),
            flickr2k_pairs(self, self.root / "Flickr2K", split),
        ]
        return [pair for part in parts for pair in part or ()] or None

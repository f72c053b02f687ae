"""Your own HR pictures: all below data.root train, those below data.val_root validate, below data.test_root test.

Without val_root a share of them, data.val_fraction, validates instead. LR pictures are made.
"""

from vantage.data.super_resolution_dataset import PicturePair
from vantage.data.super_resolution_files import SuperResolutionFiles


class ImageFolderHR(SuperResolutionFiles):
    layout = "HR pictures, at any depth"

    def scan(self, split: str) -> list[PicturePair] | None:
        return self.pairs(self.root) if split == "train" else None

"""DIV2K: 800 pictures of about 2 megapixels to train on (0001 to 0800) and 100 to validate (0801 to 0900).

root/DIV2K_train_HR/0001.png   root/DIV2K_train_LR_bicubic/X4/0001x4.png
root/DIV2K_valid_HR/0801.png   root/DIV2K_valid_LR_bicubic/X4/0801x4.png
or all 900 in the folders of train, as EDSR's release has them; 0801 to 0900 never train.

Agustsson and Timofte, 2017, NTIRE 2017 Challenge on Single Image Super-Resolution: Dataset and Study.
"""

import re
from pathlib import Path, PurePosixPath

from vantage.data.super_resolution_dataset import PicturePair
from vantage.data.super_resolution_files import SuperResolutionFiles, by_scale


class DIV2K(SuperResolutionFiles):
    layout = "DIV2K_train_HR/0001.png, DIV2K_valid_HR/0801.png and, for lr=files, DIV2K_train_LR_bicubic/X4/0001x4.png"

    def scan(self, split: str) -> list[PicturePair] | None:
        return div2k_pairs(self, self.root, split)


def div2k_pairs(data: SuperResolutionFiles, root: Path, split: str) -> list[PicturePair] | None:
    if split == "test":
        return None
    part = "valid" if split == "val" and (root / "DIV2K_valid_HR").is_dir() else "train"
    found = data.pairs(root / f"DIV2K_{part}_HR", by_scale(root / f"DIV2K_{part}_LR_bicubic", data.scale))
    if part == "valid":
        return found
    return [pair for pair in found if validates(pair.name) == (split == "val")] or None


def validates(name: str) -> bool:
    """0801 to 0900, and sub-images of them, 0801_s001."""
    number = re.match(r"(\d{4})(?!\d)", PurePosixPath(name).name)
    return number is not None and 801 <= int(number[1]) <= 900

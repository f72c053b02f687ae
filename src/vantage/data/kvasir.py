"""Polyps: Kvasir-SEG, or the five sets of PraNet's protocol.

Kvasir-SEG, 1000 pictures of 332x487 to 1920x1072; validation is cut, nothing is tested:
root/images/*.jpg                           root/masks/*.jpg
PraNet's, 1450 to train (900 of Kvasir-SEG, 550 of CVC-ClinicDB) and 798 to test:
root/TrainDataset/image/*                   root/TrainDataset/mask/*
root/TestDataset/<set>/images/*             root/TestDataset/<set>/masks/*
<set>: Kvasir 100, CVC-ClinicDB 62, CVC-ColonDB 380, CVC-300 60, ETIS-LaribPolypDB 196; image, mask and images, masks
are taken alike.

JPEG masks have grey rims: a pixel is polyp where it is brighter than `threshold`.

Jha et al., 2020, Kvasir-SEG, arXiv:1911.07069; Fan et al., 2020, PraNet, arXiv:2006.11392, whose repository links the
five sets. For research and education only; https://datasets.simula.no/kvasir-seg has Kvasir-SEG and its terms.
"""

from collections.abc import Sequence
from pathlib import Path

from vantage.data.augment import Augment
from vantage.data.base import require
from vantage.data.errors import DataNotFoundError
from vantage.data.mask_files import first_folder, pair_masks
from vantage.data.masks import Threshold
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.segmentation_augment import SegmentationAugment
from vantage.data.segmentation_dataset import SegmentationSplit
from vantage.data.segmentation_files import SegmentationFiles

CLASSES = ("background", "polyp")
TEST_SETS = ("Kvasir", "CVC-ClinicDB", "CVC-ColonDB", "CVC-300", "ETIS-LaribPolypDB")


class Kvasir(SegmentationFiles):
    """test_set: which of PraNet's five is tested, or `all` of them, each name then begins with its set's."""

    num_classes = len(CLASSES)  # for what must know it before the data is opened
    layout = "images/ and masks/, or TrainDataset/{image,mask}/ and TestDataset/<set>/{images,masks}/"

    def __init__(
        self,
        *,
        root: str,
        test_set: str = "Kvasir",
        threshold: int = 127,
        val_fraction: float = 0.1,
        image_size: int | Sequence[int] = 352,
        resize: int | Sequence[int] | None = (352, 352),
        in_chans: int = 3,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        batch_size: int = 8,
        eval_batch_size: int | None = 1,
        drop_last: bool = True,
        num_workers: int | str = "auto",
        cache: bool | str = "auto",
        cache_gb: float = 2.0,
        on_bad_sample: str = "raise",
        seed: int = 0,
        split_seed: int = 0,
        augment: SegmentationAugment | RotatedAugment | Augment | dict | None = None,
        default_augment: SegmentationAugment | None = None,
    ) -> None:
        super().__init__(
            root=root,
            val_fraction=val_fraction,
            image_size=image_size,
            resize=resize,
            in_chans=in_chans,
            mean=mean,
            std=std,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            num_workers=num_workers,
            cache=cache,
            cache_gb=cache_gb,
            on_bad_sample=on_bad_sample,
            seed=seed,
            split_seed=split_seed,
            augment=augment,
            default_augment=default_augment,
        )
        require(test_set in (*TEST_SETS, "all"), "test_set", test_set, f"{', '.join(TEST_SETS)} or all")
        require(0 <= threshold < 255, "threshold", threshold, "in 0..254")
        self.test_set, self.encoding = test_set, Threshold(threshold)

    def class_names(self) -> list[str]:
        return list(CLASSES)

    def scan(self, split: str) -> SegmentationSplit | None:
        if split == "val":
            return None
        if split == "train":
            folder = first_folder(self.root, "TrainDataset", ".")
            return self.files(*find_pairs(folder), self.encoding, folder)
        tests = self.root / "TestDataset"
        if not tests.is_dir():
            return None
        pairs, bad = [], []
        for name in TEST_SETS if self.test_set == "all" else (self.test_set,):
            if not (tests / name).is_dir():
                found = ", ".join(sorted(path.name for path in tests.iterdir() if path.is_dir())) or "no folder"
                raise DataNotFoundError(
                    f"there is no folder {(tests / name).absolute()} (data.test_set={self.test_set}); {tests} has "
                    f"{found}: choose one of them"
                )
            some, without = find_pairs(tests / name)
            prefix = f"{name}/" if self.test_set == "all" else ""
            pairs += [(prefix + picture, image, mask) for picture, image, mask in some]
            bad += without
        return self.files(pairs, bad, self.encoding, tests)


def find_pairs(folder: Path) -> tuple[list[tuple[str, str, str]], list[str]]:
    """pair_masks of the folders images and masks, or image and mask."""
    return pair_masks(first_folder(folder, "images", "image"), first_folder(folder, "masks", "mask"))

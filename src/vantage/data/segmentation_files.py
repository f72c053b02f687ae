"""Segmentation data that lies in files below a root folder; a format says which and what their values mean."""

import logging
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from vantage.data.augment import Augment
from vantage.data.base import require
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.masks import Encoding, ReadMask
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.segmentation import SegmentationData
from vantage.data.segmentation_augment import SegmentationAugment
from vantage.data.segmentation_dataset import SegmentationSplit

log = logging.getLogger(__name__)


class SegmentationFiles(SegmentationData):
    """Where the data has no val split, val_fraction of the training pictures (cut by split_seed) becomes one.

    A picture without its mask and a mask without its picture are bad samples, like those that cannot be read.
    """

    layout = ""  # what is expected below data.root, for the error if nothing is there

    def __init__(
        self,
        *,
        root: str,
        val_fraction: float = 0.1,
        image_size: int | Sequence[int] = 512,
        resize: int | Sequence[int] | None = None,
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
        require(0 <= val_fraction < 1, "val_fraction", val_fraction, "in [0, 1)")
        self.root, self.val_fraction = Path(root), val_fraction
        self._scanned: dict[str, SegmentationSplit | None] = {}  # what scan gave
        self._parts: dict[str, SegmentationSplit] | None = None  # of train, once it is scanned: itself, and val if cut

    # ---- what a format defines

    @abstractmethod
    def scan(self, split: str) -> SegmentationSplit | None:
        """The files of train, val or test; None if the data has no such split."""

    def group_of(self, name: str) -> str:
        """Of pictures that show the same (slices of a patient, tiles of a picture), one name: they stay together."""
        return name

    # ---- for SegmentationData

    def open(self, split: str) -> SegmentationSplit | None:
        if not self.root.is_dir():
            expected = f"; expected in it: {self.layout}" if self.layout else ""
            raise DataNotFoundError(f"there is no folder {self.root.absolute()} (data.root={self.root}){expected}")
        if split == "test":
            return self.testing()
        if split == "val" and (found := self.validation()) is not None:
            return found
        if self._parts is None:
            self._parts = self._cut_validation(self.scanned("train"))
        return self._parts.get(split)

    def testing(self) -> SegmentationSplit | None:
        """The pictures that test, if there are any."""
        found = self.scanned("test")
        if found is None:
            log.warning("%s has no test split: nothing can be tested", self.root)
        return found

    def validation(self) -> SegmentationSplit | None:
        """The pictures that validate; None where they are to be cut from train."""
        return self.scanned("val")

    def scanned(self, split: str) -> SegmentationSplit | None:
        """What `scan` gives, which is asked once: it logs the files that it skips."""
        if split not in self._scanned:
            self._scanned[split] = self.scan(split)
        return self._scanned[split]

    def _cut_validation(self, train: SegmentationSplit | None) -> dict[str, SegmentationSplit]:
        if train is None:
            return {}
        if self.validation() is not None:
            return {"train": train}
        if not self.val_fraction:
            log.warning("data.val_fraction=0 and %s has no val split: nothing is validated", self.root)
            return {"train": train}
        groups: dict[str, list[int]] = defaultdict(list)
        for i, name in enumerate(train.names):
            groups[self.group_of(name)].append(i)
        count = round(self.val_fraction * len(groups))
        if not 0 < count < len(groups):
            what = "training pictures" if len(groups) == len(train.names) else "groups of training pictures"
            raise DataError(
                f"data.val_fraction={self.val_fraction} of {len(groups)} {what} is {count}, which leaves none to "
                "validate or to train on; use another fraction"
            )
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(self.split_seed)).tolist()
        members = list(groups.values())
        val, kept = (sorted(i for at in part for i in members[at]) for part in (order[:count], order[count:]))
        return {"val": train.select(val), "train": train.select(kept)}

    # ---- for formats

    @property
    def expected(self) -> str:
        """The end of an error about a file or folder that is missing."""
        return f"; expected below {self.root}: {self.layout}"

    def files(
        self, pairs: Sequence[tuple[str, str, str]], bad: Sequence[str], encoding: Encoding, where: Path | str
    ) -> SegmentationSplit:
        """The split of (name, picture, mask) files of one encoding; `bad` says what has no partner."""
        self.report_bad(bad, f"{where}: {len(bad)} pictures or masks have no partner and were skipped")
        if not pairs:
            raise DataError(f"{where} holds no picture with a mask{self.expected}")
        names, images, masks = (list(column) for column in zip(*pairs))
        return SegmentationSplit(images, masks, names, read_mask=ReadMask(encoding))

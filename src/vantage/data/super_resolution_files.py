"""Super-resolution data that lies in files below a root folder; a format says in which folders."""

import logging
import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from vantage.data.augment import Augment
from vantage.data.base import require
from vantage.data.errors import DataError, DataNotFoundError
from vantage.data.low_resolution_files import pair_low
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.segmentation_augment import SegmentationAugment
from vantage.data.super_resolution import SuperResolutionData
from vantage.data.super_resolution_augment import SuperResolutionAugment
from vantage.data.super_resolution_dataset import PicturePair

log = logging.getLogger(__name__)


class SuperResolutionFiles(SuperResolutionData):
    """val_root, test_root: folders of HR pictures, at any depth, to validate and to test on instead of the format's.

    Where there is nothing to validate on, val_fraction of the training pictures (cut by split_seed) becomes it. What
    validates or tests is left out of training, even if it lies among the training pictures.
    """

    layout = ""  # what is expected below data.root, for the error if it is not there

    def __init__(
        self,
        *,
        root: str,
        val_root: str | None = None,
        test_root: str | None = None,
        val_fraction: float = 0.1,
        scale: int = 2,
        image_size: int | Sequence[int] = 48,
        in_chans: int = 3,
        mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        lr: str = "auto",
        rounding: str = "auto",
        repeat: int = 1,
        benchmarks: str | None = None,
        sets: Sequence[str] | None = None,
        batch_size: int = 16,
        eval_batch_size: int | None = 1,
        drop_last: bool = True,
        num_workers: int | str = "auto",
        cache: bool | str = "auto",
        cache_gb: float = 2.0,
        decoded_dir: str | None = None,
        on_bad_sample: str = "raise",
        seed: int = 0,
        split_seed: int = 0,
        augment: SuperResolutionAugment | SegmentationAugment | RotatedAugment | Augment | dict | None = None,
        default_augment: SuperResolutionAugment | None = None,
    ) -> None:
        super().__init__(
            scale=scale,
            image_size=image_size,
            in_chans=in_chans,
            mean=mean,
            std=std,
            lr=lr,
            rounding=rounding,
            repeat=repeat,
            benchmarks=benchmarks,
            sets=sets,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            num_workers=num_workers,
            cache=cache,
            cache_gb=cache_gb,
            decoded_dir=decoded_dir,
            on_bad_sample=on_bad_sample,
            seed=seed,
            split_seed=split_seed,
            augment=augment,
            default_augment=default_augment,
        )
        require(0 <= val_fraction < 1, "val_fraction", val_fraction, "in [0, 1)")
        self.root, self.val_fraction = Path(root), val_fraction
        self.instead = {
            "val": None if val_root is None else Path(val_root),
            "test": None if test_root is None else Path(test_root),
        }
        self._held: dict[str, list[PicturePair] | None] = {}  # what validates or tests and is not cut from train
        self._parts: dict[str, list[PicturePair]] | None = None  # of train, once it is found: itself, and val if cut

    # ---- what a format defines

    @abstractmethod
    def scan(self, split: str) -> list[PicturePair] | None:
        """The files of train, val or test; None if the data has no such split."""

    # ---- for SuperResolutionData

    def find(self, split: str) -> list[PicturePair] | None:
        if not self.root.is_dir():
            raise DataNotFoundError(
                f"there is no folder {self.root.absolute()} (data.root={self.root}); expected in it: {self.layout}"
            )
        if split != "train":
            found = self._held_out(split)
            if found is not None or split == "test":
                return found
        if self._parts is None:
            self._parts = self._cut_validation()
        return self._parts.get(split)

    def _held_out(self, split: str) -> list[PicturePair] | None:
        if split not in self._held:  # asked once: it logs the files that it skips
            instead = self.instead[split]
            self._held[split] = self.scan(split) if instead is None else self.pairs(instead)
        return self._held[split]

    def _cut_validation(self) -> dict[str, list[PicturePair]]:
        train = self.scan("train")
        if train is None:
            return {}
        train = self._without_held_out(train)
        if self._held_out("val") is not None:
            return {"train": train}
        if not self.val_fraction:
            log.warning("data.val_fraction=0 and %s has nothing to validate on", self.root)
            return {"train": train}
        groups: dict[str, list[int]] = defaultdict(list)
        for i, pair in enumerate(train):
            groups[picture_of(pair.name)].append(i)
        count = round(self.val_fraction * len(groups))
        if not 0 < count < len(groups):
            raise DataError(
                f"data.val_fraction={self.val_fraction} of {len(groups)} training pictures is {count}, which leaves "
                "none to validate or to train on; use another fraction, or data.val_root"
            )
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(self.split_seed)).tolist()
        members = list(groups.values())
        val, kept = (sorted(i for at in part for i in members[at]) for part in (order[:count], order[count:]))
        return {"val": [train[i] for i in val], "train": [train[i] for i in kept]}

    def _without_held_out(self, train: list[PicturePair]) -> list[PicturePair]:
        held = [self._held_out("val"), self.open("test") if self.benchmarks else self._held_out("test")]
        files = {Path(pair.high).resolve() for pairs in held for pair in pairs or ()}
        kept = [pair for pair in train if Path(pair.high).resolve() not in files]
        if len(kept) < len(train):
            log.info("%d pictures that validate or test are left out of training", len(train) - len(kept))
        return kept

    # ---- for formats

    def pairs(self, high: Path, low: Iterable[Path] = ()) -> list[PicturePair]:
        """The HR pictures below a folder, with LR files from the one of the folders `low` that is there."""
        hint = f"; expected below {self.root}: {self.layout}" if high.is_relative_to(self.root) else ""
        pairs, bad = pair_low(high, low, scale=self.scale, lr=self.lr, hint=hint)
        self.report_bad(bad, f"{high}: {len(bad)} pictures were skipped")
        return pairs


def picture_of(name: str) -> str:
    """The picture that a sub-image was cut from, as BasicSR names them: 0001_s012 is of 0001. They stay together."""
    return re.sub(r"_s\d+$", "", name)


def by_scale(folder: Path, scale: int) -> list[Path]:
    """Where the LR files of one scale may lie below their folder."""
    return [folder / f"X{scale}", folder / f"x{scale}"]

"""HR pictures with their LR pictures: how a pair is told, read and kept, and the dataset of samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vantage.data.decoded import Pictures
from vantage.data.ground_truth import read_ground_truth
from vantage.data.info import DataInfo
from vantage.data.sample_dataset import Sample, SampleDataset
from vantage.data.super_resolution_augment import SuperResolutionAugment
from vantage.ops.resize import resize


@dataclass(frozen=True)
class PicturePair:
    """high, low: files, or pictures uint8 (C, H, W). low None: made from `high`."""

    name: str
    high: str | Tensor
    low: str | None = None
    set: str = ""  # the benchmark set, or the split, that it belongs to

    def told(self) -> str:
        """What to call it in an error."""
        return self.high if isinstance(self.high, str) else self.name


class Pairs(Protocol):
    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """-> LR uint8 (C, h, w), HR uint8 (C, H, W), where h is H // scale; views, not to be written to."""


@dataclass(frozen=True)
class ReadPairs:
    """Pairs decoded at every read."""

    pairs: Sequence[PicturePair]
    in_chans: int
    scale: int
    rounding: str  # of LR pictures that are made, as vantage.ops.resize has it

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.pairs[index]
        high = read_ground_truth(pair.high, self.in_chans) if isinstance(pair.high, str) else pair.high
        if pair.low is not None:
            return read_ground_truth(pair.low, self.in_chans), high
        whole = [side // self.scale * self.scale for side in high.shape[-2:]]  # what is left over has no LR pixel
        return resize(high[:, : whole[0], : whole[1]], 1 / self.scale, rounding=self.rounding), high


@dataclass(frozen=True)
class StoredPairs:
    """Pairs that were decoded once."""

    low: Pictures
    high: Pictures

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        return self.low.read(index), self.high.read(index)


class SuperResolutionDataset(SampleDataset):
    """Samples, and batches of them as lists, for evaluated pictures have sizes of their own:

    image      float32 (C, h, w), the LR picture, normalised; of the data's image_size in training
    target     uint8 (C, scale h, scale w), the HR picture
    name       str;  set  str, its benchmark set or split;  index  int;  size  (h, w)

    repeat: an epoch takes each picture this many times, each time another patch of it.
    """

    def __init__(
        self,
        pairs: Pairs,
        names: Sequence[str],
        sets: Sequence[str],
        info: DataInfo,
        *,
        seed: int,
        skip_bad: bool,
        augment: SuperResolutionAugment | None = None,
        repeat: int = 1,
    ) -> None:
        super().__init__(list(names) * repeat, info, seed=seed, skip_bad=skip_bad, augments=augment is not None)
        self.pairs, self.sets, self.augment = pairs, sets, augment

    def raw(self, index: int) -> Sample | None:
        count = len(self.sets)
        sample = super().raw(index % count)
        if sample is None:
            self.is_bad[index % count :: count] = True  # it is bad as often as it is repeated
        return sample

    def read(self, index: int) -> Sample:
        low, high = self.pairs.read(index)
        height, width = (self.info.scale * side for side in low.shape[-2:])
        high = high[:, :height, :width]  # never resized: the rows and columns that no LR pixel covers are cut off
        if not self.augments:
            high = high.clone(memory_format=torch.contiguous_format)
        return {"image": low, "target": high, "set": self.sets[index]}

    def augmented(self, sample: Sample) -> Sample:
        low, high = self.augment(sample["image"], sample["target"], self.info.image_size, self.info.scale)
        return sample | {"image": low, "target": high, "size": self.info.image_size}

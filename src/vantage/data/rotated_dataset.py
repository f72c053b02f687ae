"""Pictures with rotated boxes: a split's samples, and the dataset that makes lists of them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vantage.data.errors import DataError
from vantage.data.info import DataInfo
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.store import MemoryStore, PackedStore, Store

log = logging.getLogger(__name__)

Sample = dict[str, Any]


@dataclass(frozen=True)
class Objects:
    """What is on one picture."""

    boxes: Tensor  # float32 (N, 5): cx, cy, w, h in pixels, angle_rad; canonical
    labels: Tensor  # int64 (N,)
    difficult: Tensor  # bool (N,): neither to be found nor to be learned from

    @classmethod
    def none(cls) -> "Objects":
        return cls(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))


@dataclass
class RotatedSplit:
    """A split as its format gives it. `source`: uint8 (C, H, W) of any size each, or the paths of N files."""

    source: list[Tensor] | list[str]
    objects: list[Objects]
    names: list[str]  # the file's name without its extension, or an id: what results are called by
    masks: list[Tensor] | None = None  # uint8 (H, W): 0 background, 1 + label, 255 ignore

    def select(self, index: Sequence[int]) -> "RotatedSplit":
        masks = None if self.masks is None else [self.masks[i] for i in index]
        picked = ([values[i] for i in index] for values in (self.source, self.objects, self.names))
        return RotatedSplit(*picked, masks)

    def summary(self) -> str:
        counts = [len(each.labels) for each in self.objects]
        difficult = sum(int(each.difficult.sum()) for each in self.objects)
        text = f"{len(counts):,} pictures, {sum(counts):,} objects ({difficult:,} difficult)"
        return f"{text}, {counts.count(0):,} pictures without any object" if 0 in counts else text


def pack(pictures: Sequence[Tensor]) -> MemoryStore | PackedStore:
    """Pictures (C, H, W) in memory as one buffer."""
    shapes = torch.tensor([list(picture.shape) for picture in pictures])
    if bool((shapes == shapes[0]).all()):
        return MemoryStore(torch.stack(list(pictures)))
    lengths = shapes.prod(1)
    return PackedStore(torch.cat([picture.flatten() for picture in pictures]), shapes, lengths.cumsum(0) - lengths)


class RotatedDataset(Dataset):
    """Samples, and batches of them as lists, for there are as many boxes as there are:

    image      float32 (C, H, W), normalised; of the data's image_size in training, in evaluation of the picture's own
    boxes      float32 (N, 5): cx, cy, w, h in pixels of `image`, angle_rad; canonical, of any part outside too
    labels     int64 (N,);  difficult  bool (N,): ignore these, in training as in evaluation
    masks      uint8 (H, W): 0 background, 1 + label, 255 ignore; if the data has masks
    name       str;  index  int;  size  (H, W) of `image`

    `augment` is None for evaluation; then nothing is random. All random numbers of a sample come from a generator
    seeded by (seed, epoch and index), so that they do not depend on the number of workers.
    """

    def __init__(
        self,
        store: Store,
        split: RotatedSplit,
        info: DataInfo,
        *,
        seed: int,
        skip_bad: bool,
        augment: RotatedAugment | None = None,
    ) -> None:
        assert len(store) == len(split.objects) == len(split.names)
        self.store, self.objects, self.names, self.info = store, split.objects, split.names, info
        self.masks = None if split.masks is None else pack(split.masks)
        self.seed, self.skip_bad, self.augment = seed, skip_bad, augment
        self.fill = [round(value * 255) for value in info.mean]
        # shared with the workers, which find them; those of a store in memory were found when it was filled
        self.is_bad = torch.zeros(len(store), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, position: int) -> Sample:
        samples = self.__getitems__([position])
        if not samples:
            raise DataError(f"{self.names[position % len(self)]}: is marked as a bad sample")
        return samples[0]

    def __getitems__(self, positions: list[int]) -> list[Sample] | None:
        """The loader's call for a batch; None if on_bad_sample=skip leaves nothing of an evaluation batch."""
        samples = [sample for position in positions if (sample := self._make(position)) is not None]
        if samples:
            return samples
        if self.augment is None:
            return None
        first = self.names[positions[0] % len(self)]  # the trainer counts on every training batch
        raise DataError(f"all {len(positions)} samples of a training batch are bad, the first is {first}")

    def _make(self, position: int) -> Sample | None:
        sample = self.raw(position % len(self))
        if sample is None:
            return None
        if self.augment is not None:
            with torch.random.fork_rng(devices=[]):  # leaves the stream that the model draws from alone
                seed = np.random.SeedSequence([self.seed, position]).generate_state(1)[0]
                torch.default_generator.manual_seed(int(seed))  # torch.manual_seed would reseed CUDA as well
                sample = self.augment(sample, self.info.image_size, self.fill, self._another)
        return sample | {"image": self.info.normalize(sample["image"])}

    def raw(self, index: int) -> Sample | None:
        """A sample as it lies in the store, its picture uint8; None if it is bad and is to be skipped."""
        if self.is_bad[index]:
            return None
        try:
            image = self.store.read(index)
        except DataError as error:
            if not self.skip_bad:
                raise DataError(f"{error}; data.on_bad_sample=skip leaves such files out") from None
            self.is_bad[index] = True
            log.warning("skipped %s", error)
            return None
        objects = self.objects[index]
        sample = {"image": image, "boxes": objects.boxes, "labels": objects.labels, "difficult": objects.difficult}
        if self.masks is not None:
            sample["masks"] = self.masks.read(index)
        return sample | {"name": self.names[index], "index": index, "size": tuple(image.shape[-2:])}

    def _another(self) -> Sample:
        """A sample at random, a good one; there is one, for who asks has one."""
        while True:
            sample = self.raw(int(torch.randint(len(self), ())))
            if sample is not None:
                return sample

"""Pictures with rotated boxes: a split's samples, and the dataset that makes lists of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.data.info import DataInfo
from vantage.data.rotated_augment import RotatedAugment
from vantage.data.sample_dataset import Sample, SampleDataset
from vantage.data.store import Store, pack


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


class RotatedDataset(SampleDataset):
    """Samples, and batches of them as lists, for there are as many boxes as there are:

    image      float32 (C, H, W), normalised; of the data's image_size in training, in evaluation of the picture's own
    boxes      float32 (N, 5): cx, cy, w, h in pixels of `image`, angle_rad; canonical, of any part outside too
    labels     int64 (N,);  difficult  bool (N,): ignore these, in training as in evaluation
    masks      uint8 (H, W): 0 background, 1 + label, 255 ignore; if the data has masks
    name       str;  index  int;  size  (H, W) of `image`
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
        super().__init__(split.names, info, seed=seed, skip_bad=skip_bad, augments=augment is not None)
        self.store, self.objects, self.augment = store, split.objects, augment
        self.masks = None if split.masks is None else pack(split.masks)

    def read(self, index: int) -> Sample:
        objects = self.objects[index]
        sample = {"image": self.store.read(index), "boxes": objects.boxes, "labels": objects.labels}
        sample["difficult"] = objects.difficult
        return sample if self.masks is None else sample | {"masks": self.masks.read(index)}

    def augmented(self, sample: Sample) -> Sample:
        return self.augment(sample, self.info.image_size, self.fill, self._another)

    def _another(self) -> Sample:
        """A sample at random, a good one; there is one, for who asks has one."""
        while True:
            sample = self.raw(int(torch.randint(len(self), ())))
            if sample is not None:
                return sample

"""Pictures of any size with whatever belongs to them: a dataset that makes batches as lists of samples."""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vantage.data.errors import DataError
from vantage.data.info import DataInfo

log = logging.getLogger(__name__)

Sample = dict[str, Any]


class SampleDataset(Dataset):
    """Samples {"image" float32 (C, H, W) normalised, "name", "index", "size" (H, W), ...}, and lists of them.

    `augments` is False for evaluation; then nothing is random. All random numbers of a sample come from a generator
    seeded by (seed, epoch and index), so that they do not depend on the number of workers.
    """

    def __init__(self, names: Sequence[str], info: DataInfo, *, seed: int, skip_bad: bool, augments: bool) -> None:
        self.names, self.info = names, info
        self.seed, self.skip_bad, self.augments = seed, skip_bad, augments
        self.fill = [round(value * 255) for value in info.mean]  # the colour outside of pictures
        # shared with the workers, which find them; those of a store in memory were found when it was filled
        self.is_bad = torch.zeros(len(names), dtype=torch.bool).share_memory_()

    # ---- what a kind of data defines

    @abstractmethod
    def read(self, index: int) -> Sample:
        """A sample as it lies in the store, its picture uint8. Raises: DataError if it is bad."""

    @abstractmethod
    def augmented(self, sample: Sample) -> Sample:
        """The sample changed at random, its picture still uint8."""

    # ---- torch's calls

    def __len__(self) -> int:
        return len(self.names)

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
        if not self.augments:
            return None
        first = self.names[positions[0] % len(self)]  # the trainer counts on every training batch
        raise DataError(f"all {len(positions)} samples of a training batch are bad, the first is {first}")

    def _make(self, position: int) -> Sample | None:
        sample = self.raw(position % len(self))
        if sample is None:
            return None
        if self.augments:
            with torch.random.fork_rng(devices=[]):  # leaves the stream that the model draws from alone
                seed = np.random.SeedSequence([self.seed, position]).generate_state(1)[0]
                torch.default_generator.manual_seed(int(seed))  # torch.manual_seed would reseed CUDA as well
                sample = self.augmented(sample)
        return sample | {"image": self.info.normalize(sample["image"])}

    def raw(self, index: int) -> Sample | None:
        """A sample as it lies in the store, with its name, index and size; None if it is bad and is to be skipped."""
        if self.is_bad[index]:
            return None
        try:
            sample = self.read(index)
        except DataError as error:
            if not self.skip_bad:
                raise DataError(f"{error}; data.on_bad_sample=skip leaves such files out") from None
            self.is_bad[index] = True
            log.warning("skipped %s", error)
            return None
        return sample | {"name": self.names[index], "index": index, "size": tuple(sample["image"].shape[-2:])}

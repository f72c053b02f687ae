"""From a store of pictures to batches, the same ones for any number of loader workers.

The sampler hands out epoch * len(dataset) + index, so that a worker knows the epoch without being told. All random
numbers of a batch come from a generator seeded by (seed, first such number of the batch): augmentation depends on
the seed, the epoch and the order alone, not on how many workers share the work, nor on what the model draws.
"""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from vantage.data.augment import Augment
from vantage.data.errors import DataError
from vantage.data.images import fit
from vantage.data.info import DataInfo
from vantage.data.store import MemoryStore, Store

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class ImageDataset(Dataset):
    """One split. `augment` is None for evaluation; then nothing is random."""

    def __init__(
        self,
        store: Store,
        labels: Tensor,
        names: list[str],
        info: DataInfo,
        *,
        seed: int,
        center_crop: float,
        interpolation: str,
        skip_bad: bool,
        augment: Augment | None = None,
    ) -> None:
        assert len(store) == len(labels) == len(names)
        self.store, self.labels, self.names, self.info = store, labels, names, info
        self.seed, self.center_crop, self.interpolation = seed, center_crop, interpolation
        self.skip_bad, self.augment = skip_bad, augment
        # shared with the workers, which find them; those of a store in memory were found when it was filled
        self.is_bad = torch.zeros(len(store), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, position: int) -> Batch:
        batch = self.__getitems__([position])
        if batch is None:
            raise DataError(f"{self.names[position % len(self)]}: is marked as a bad sample")
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, positions: list[int]) -> Batch | None:
        """The loader's call for a whole batch; None if on_bad_sample=skip leaves nothing of an evaluation batch."""
        index = torch.tensor(positions) % len(self)
        if isinstance(self.store, MemoryStore):
            images: Tensor | list[Tensor] = self.store.pixels[index]
        else:
            images, index = self._read(index)
            if not images and self.augment is None:
                return None
            if not images:  # the trainer counts on every training batch
                first = self.names[positions[0] % len(self)]
                raise DataError(f"all {len(positions)} samples of a training batch are bad, the first is {first}")
        if self.augment is None:
            images = self.info.normalize(self._fit(images))
        else:
            with torch.random.fork_rng(devices=[]):  # leaves the stream that the model draws from alone
                seed = np.random.SeedSequence([self.seed, positions[0]]).generate_state(1)[0]
                torch.default_generator.manual_seed(int(seed))  # torch.manual_seed would reseed CUDA as well
                images = self._augment(images)
        return {"image": images, "label": self.labels[index], "index": index}

    def _augment(self, images: Tensor | list[Tensor]) -> Tensor:
        if self.augment.crops_original:
            images = self.augment.crop_resized(images, self.info.image_size, self.interpolation)
        else:
            images = self._fit(images)
        return self.augment.erase_boxes(self.info.normalize(self.augment.change(images)))

    def _fit(self, images: Tensor | list[Tensor]) -> Tensor:
        if isinstance(images, Tensor):
            return fit(images, self.info.image_size, self.center_crop, self.interpolation)
        return torch.stack([fit(image, self.info.image_size, self.center_crop, self.interpolation) for image in images])

    def _read(self, index: Tensor) -> tuple[list[Tensor], Tensor]:
        images, kept = [], []
        for i in index.tolist():
            if self.is_bad[i]:
                continue
            try:
                images.append(self.store.read(i))
            except DataError as error:
                if not self.skip_bad:
                    raise DataError(f"{error}; data.on_bad_sample=skip leaves such files out") from None
                self.is_bad[i] = True
                log.warning("skipped %s", error)
                continue
            kept.append(i)
        return images, torch.tensor(kept, dtype=torch.int64)


class EpochSampler(DistributedSampler):
    """epoch * length + index, shuffled by (seed, epoch); shared out when training is distributed.

    Training gives every process the same number of samples by repeating a few; evaluation repeats none, so that
    every sample counts once.
    """

    def __init__(self, dataset: ImageDataset, *, shuffle: bool, seed: int, repeat: bool) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        world = torch.distributed.get_world_size() if distributed else 1
        rank = torch.distributed.get_rank() if distributed else 0
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=shuffle, seed=seed)
        self.repeat = repeat

    def __iter__(self) -> Iterator[int]:
        length = len(self.dataset)
        if self.shuffle:
            generator = torch.Generator().manual_seed(
                int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
            )
            order = torch.randperm(length, generator=generator)
        else:
            order = torch.arange(length)
        if self.repeat:
            order = order[torch.arange(self.num_samples * self.num_replicas) % length]
        order = order[self.rank :: self.num_replicas]
        return iter((order + self.epoch * length).tolist() if self.shuffle else order.tolist())

    def __len__(self) -> int:
        if self.repeat:
            return self.num_samples
        return len(range(self.rank, len(self.dataset), self.num_replicas))


class Loader(DataLoader):
    """A DataLoader that reports, with the last batch of an epoch, the bad samples that the epoch had to skip."""

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(super().__iter__(), 1):
            if number == len(self):  # now: Lightning stops here and never asks for the end of the iteration
                self.report_skipped()
            if batch is not None:
                yield batch

    def report_skipped(self) -> None:
        dataset = self.dataset
        skipped = int(dataset.is_bad.sum())
        if skipped:
            names = [dataset.names[i] for i in dataset.is_bad.nonzero().flatten()[:3]]
            log.warning("%d of %d samples are bad and were skipped: %s", skipped, len(dataset), ", ".join(names))


def as_batch(batch: Batch | None) -> Batch | None:
    """The collate function: `__getitems__` has made the batch already."""
    return batch

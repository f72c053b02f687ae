"""What the data modules of every task share: common options, loaders, and what happens to bad samples."""

import logging
import warnings
from abc import abstractmethod
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from torch.utils.data import Dataset

from vantage.data.dataset import EpochSampler, Loader, as_batch
from vantage.data.errors import DataError
from vantage.data.info import DataInfo
from vantage.data.store import usable_cores

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
STAGES = {"fit": SPLITS, None: SPLITS, "validate": ("val",), "test": ("test",), "predict": ()}
LUMA = torch.tensor([0.299, 0.587, 0.114])


class VisionData(pl.LightningDataModule):
    """Train, val and test loaders over `datasets`, which `setup` fills; a dataset makes whole batches by itself.

    image_size: a side or (height, width) of training pictures. in_chans: 1 or 3; pictures are converted.
    mean, std: of pixels in 0..1.
    batch_size counts samples per process. drop_last leaves the last, smaller training batch of each epoch out (which
    samples it holds changes with the order); evaluation never drops a sample.
    seed orders and augments; split_seed cuts splits, so that runs of many seeds are tested on the same samples.
    num_workers: "auto" is 0 where a batch is cheap to make, else as many as the cores allow.
    cache: keep decoded pictures in memory: "auto" if they take no more than cache_gb (per split), or True, or False.
    on_bad_sample: "raise" or "skip" (counted, logged).
    """

    tasks: tuple[str, ...] = ()  # what its labels are for; the composition check refuses other tasks

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        in_chans: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        eval_batch_size: int | None,
        drop_last: bool,
        num_workers: int | str,
        cache: bool | str,
        cache_gb: float,
        on_bad_sample: str,
        seed: int,
        split_seed: int,
    ) -> None:
        super().__init__()
        size = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
        require(len(size) == 2 and min(size) >= 1, "image_size", image_size, "a side or [height, width]")
        require(in_chans in (1, 3), "in_chans", in_chans, "1 or 3")
        require(batch_size >= 1, "batch_size", batch_size, ">= 1")
        require(eval_batch_size is None or eval_batch_size >= 1, "eval_batch_size", eval_batch_size, ">= 1 or null")
        workers_ok = num_workers == "auto" or (isinstance(num_workers, int) and num_workers >= 0)
        require(workers_ok, "num_workers", num_workers, "auto or a count >= 0")
        require(cache in ("auto", True, False), "cache", cache, "auto, true or false")
        require(on_bad_sample in ("raise", "skip"), "on_bad_sample", on_bad_sample, "raise or skip")
        require(seed >= 0 and split_seed >= 0, "seed and split_seed", (seed, split_seed), ">= 0")
        self.image_size = (size[0], size[1])
        self.in_chans = in_chans
        self.mean, self.std = _per_channel("mean", mean, in_chans), _per_channel("std", std, in_chans)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.drop_last, self.num_workers = drop_last, num_workers
        self.cache, self.cache_gb = cache, cache_gb
        self.skip_bad = on_bad_sample == "skip"
        self.seed, self.split_seed = seed, split_seed
        self.datasets: dict[str, Dataset] = {}
        self._info: DataInfo | None = None

    # ---- what a kind of data defines

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Opens the data once, then fills `datasets` for the splits of the stage, where they exist."""

    @abstractmethod
    def is_light(self, dataset: Dataset) -> bool:
        """Whether making a batch costs less than handing it from process to process."""

    # ---- Lightning's hooks

    @property
    def info(self) -> DataInfo:
        if self._info is None:
            raise RuntimeError("data.info is known after setup()")
        return self._info

    def train_dataloader(self) -> Loader:
        loader = self._loader("train", self.batch_size)
        left_out = len(loader.sampler) % self.batch_size
        if self.drop_last and not len(loader):
            raise DataError(
                f"data.drop_last=true leaves no batch: {len(loader.sampler)} training samples are fewer than "
                f"data.batch_size={self.batch_size}; use a smaller batch_size or data.drop_last=false"
            )
        if self.drop_last and left_out:
            log.info("data.drop_last=true leaves the last %d samples of each epoch's order out", left_out)
        return loader

    def val_dataloader(self) -> Loader | list:
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> Loader | list:
        return self._loader("test", self.eval_batch_size)

    # ---- for tasks and pictures

    def sample_name(self, split: str, index: int) -> str:
        return self.datasets[split].names[index]

    # ---- parts

    def report_bad(self, reasons: Sequence[str], what: str) -> None:
        """Raises with the first reason, or, if bad samples are to be skipped, logs every one and `what`, the count."""
        if not reasons:
            return
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        if not self.skip_bad:
            raise DataError(f"{reasons[0]}{more}; data.on_bad_sample=skip leaves such samples out")
        for reason in reasons:
            log.warning("skipped %s", reason)
        log.warning("%s", what)

    def _loader(self, split: str, batch_size: int) -> Loader | list:
        self.setup({"train": "fit", "val": "validate", "test": "test"}[split])
        if split not in self.datasets:
            return []  # Lightning's word for "none"
        dataset, is_train = self.datasets[split], split == "train"
        on_gpu = self._on_gpu()
        workers = self.num_workers
        if workers == "auto":
            workers = auto_workers(usable_cores(), self._local_processes(), self.is_light(dataset), on_gpu)
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        return Loader(
            dataset,
            batch_size=batch_size,
            sampler=EpochSampler(dataset, shuffle=is_train, seed=self.seed, repeat=is_train),
            drop_last=is_train and self.drop_last,
            collate_fn=as_batch,
            num_workers=workers,
            generator=torch.Generator().manual_seed(self.seed),  # else each start draws from the model's generator
            # fork shares the decoded pictures and the marks of bad samples; where it is missing both are sent over
            multiprocessing_context="fork"
            if workers and "fork" in torch.multiprocessing.get_all_start_methods()
            else None,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=on_gpu,
        )

    def _on_gpu(self) -> bool:
        if self.trainer is not None:
            return self.trainer.strategy.root_device.type == "cuda"
        return torch.cuda.is_available()

    def _local_processes(self) -> int:
        return self.trainer.num_devices if self.trainer is not None else 1


def auto_workers(cores: int, processes: int, is_light: bool, on_gpu: bool) -> int:
    """Loader workers per training process.

    Light batches (one indexing of memory) cost less than handing them from process to process. On a CPU that also
    trains, every worker takes a core from the computation.
    """
    if is_light:
        return 0
    mine = max(1, cores // processes)
    return min(16, max(1, mine - 1)) if on_gpu else min(8, max(1, mine // 4))


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """DataError unless the option data.<name> has a value that is allowed."""
    if not holds:
        raise DataError(f"data.{name}={value!r} is not {allowed}")


def _per_channel(name: str, values: Sequence[float], in_chans: int) -> list[float]:
    values = [float(value) for value in values]
    if len(values) == in_chans:
        return values
    if len(values) == 1:
        return values * in_chans
    if in_chans == 1 and len(values) == 3:  # the grey picture's mean is the luma of the means; its std is close to it
        return [float(torch.tensor(values) @ LUMA)]
    raise DataError(f"data.{name} has {len(values)} values for data.in_chans={in_chans}")

"""What all classification data modules share: options, caching, loaders. A format adds how its files are read."""

import functools
import logging
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vantage.data.augment import Augment
from vantage.data.dataset import EpochSampler, ImageDataset, Loader, as_batch
from vantage.data.errors import DataError
from vantage.data.images import INTERPOLATIONS, as_evaluated, fit, read_image
from vantage.data.info import DataInfo
from vantage.data.store import FileStore, MemoryStore, Store, decode_all, estimate_bytes, usable_cores

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
STAGES = {"fit": SPLITS, None: SPLITS, "validate": ("val",), "test": ("test",), "predict": ()}
LUMA = torch.tensor([0.299, 0.587, 0.114])


@dataclass
class RawSplit:
    """A split as its format gives it. `source`: uint8 (N, C, H, W), or the paths of N files."""

    source: Tensor | list[str]
    labels: Tensor  # int64 (N,)
    names: list[str]  # what to call each sample: a path or an id

    def select(self, index: Tensor) -> "RawSplit":
        picked = index.tolist()
        source = self.source[index] if isinstance(self.source, Tensor) else [self.source[i] for i in picked]
        return RawSplit(source, self.labels[index], [self.names[i] for i in picked])


class ClassificationData(pl.LightningDataModule):
    """Train, val and test loaders of {"image": float (B, C, H, W), "label": int64 (B,), "index": int64 (B,)}.

    image_size: the size of every batch; pictures are resized to cover it and cut from the centre.
    in_chans: 1 or 3; pictures are converted. mean, std: of pixels in 0..1; None: the data set's own.
    batch_size counts samples per process. drop_last leaves the last, smaller training batch of each epoch out (which
    samples it holds changes with the order); evaluation never drops a sample.
    seed orders and augments; split_seed cuts splits, so that runs of many seeds are tested on the same samples.
    num_workers: "auto" is 0 where a batch is one indexing of memory, else as many as the cores allow.
    cache: keep decoded pictures in memory: "auto" if they take no more than cache_gb (per split), or True, or False.
    on_bad_sample: "raise" or "skip" (counted, logged).
    augment: of training pictures; {} or None: default_augment.
    """

    tasks = ("classification",)  # what its labels are for; the composition check refuses other tasks

    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        in_chans: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str,
        center_crop: float,
        batch_size: int,
        eval_batch_size: int | None,
        drop_last: bool,
        num_workers: int | str,
        cache: bool | str,
        cache_gb: float,
        on_bad_sample: str,
        seed: int,
        split_seed: int,
        augment: Augment | dict | None,
        default_augment: Augment | None,
    ) -> None:
        super().__init__()
        size = [image_size, image_size] if isinstance(image_size, int) else list(image_size)
        _require(len(size) == 2 and min(size) >= 1, "image_size", image_size, "a side or [height, width]")
        _require(in_chans in (1, 3), "in_chans", in_chans, "1 or 3")
        _require(interpolation in INTERPOLATIONS, "interpolation", interpolation, " or ".join(INTERPOLATIONS))
        _require(0 < center_crop <= 1, "center_crop", center_crop, "in (0, 1]")
        _require(batch_size >= 1, "batch_size", batch_size, ">= 1")
        _require(eval_batch_size is None or eval_batch_size >= 1, "eval_batch_size", eval_batch_size, ">= 1 or null")
        workers_ok = num_workers == "auto" or (isinstance(num_workers, int) and num_workers >= 0)
        _require(workers_ok, "num_workers", num_workers, "auto or a count >= 0")
        _require(cache in ("auto", True, False), "cache", cache, "auto, true or false")
        _require(on_bad_sample in ("raise", "skip"), "on_bad_sample", on_bad_sample, "raise or skip")
        _require(seed >= 0 and split_seed >= 0, "seed and split_seed", (seed, split_seed), ">= 0")
        self.image_size = (size[0], size[1])
        self.in_chans = in_chans
        self.mean, self.std = _per_channel("mean", mean, in_chans), _per_channel("std", std, in_chans)
        self.interpolation, self.center_crop = interpolation, center_crop
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.drop_last, self.num_workers = drop_last, num_workers
        self.cache, self.cache_gb = cache, cache_gb
        self.skip_bad = on_bad_sample == "skip"
        self.seed, self.split_seed = seed, split_seed
        self.augment: Augment = augment or default_augment or Augment()
        self.datasets: dict[str, ImageDataset] = {}
        self._raw: dict[str, RawSplit] | None = None
        self._info: DataInfo | None = None

    # ---- what a format defines

    @abstractmethod
    def open(self) -> tuple[dict[str, RawSplit], list[str]]:
        """The splits that exist (test may be missing, val too) and the names of the classes, in label order."""

    # ---- Lightning's hooks

    def setup(self, stage: str | None = None) -> None:
        if self._raw is None:
            self._raw, class_names = self.open()
            self._info = DataInfo(len(class_names), class_names, self.in_chans, self.image_size, self.mean, self.std)
            self._raw = {name: self._check_labels(name, split) for name, split in self._raw.items()}
        for name in STAGES[stage]:
            if name in self._raw and name not in self.datasets:
                self.datasets[name] = self._build(name, self._raw[name])

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

    def predict_transform(self) -> Callable[[Image.Image], Tensor]:
        """Any PIL picture -> the normalised (C, H, W) that evaluation would see."""
        return functools.partial(
            as_evaluated, info=self.info, center_crop=self.center_crop, interpolation=self.interpolation
        )

    # ---- parts

    def _loader(self, split: str, batch_size: int) -> Loader | list:
        self.setup({"train": "fit", "val": "validate", "test": "test"}[split])
        if split not in self.datasets:
            return []  # Lightning's word for "none"
        dataset, is_train = self.datasets[split], split == "train"
        on_gpu = self._on_gpu()
        workers = self.num_workers
        if workers == "auto":
            workers = auto_workers(usable_cores(), self._local_processes(), _is_light(dataset), on_gpu)
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

    def _build(self, split: str, raw: RawSplit) -> ImageDataset:
        is_train = split == "train"
        # what can be computed once is: the final size, unless augmentation cuts from the original
        size = None if is_train and self.augment.crops_original else self.image_size
        if isinstance(raw.source, Tensor):
            store: Store = MemoryStore(self._convert(raw.source, size))
        else:
            decode = functools.partial(
                _decode,
                in_chans=self.in_chans,
                size=size,
                center_crop=self.center_crop,
                interpolation=self.interpolation,
            )
            store = FileStore(raw.source, decode)
            gigabytes = estimate_bytes(raw.source, self.in_chans, size) / 1e9
            if self.cache is True or (self.cache == "auto" and gigabytes <= self.cache_gb):
                what = f"{len(raw.source):,} {split} images"
                store, bad = decode_all(raw.source, decode, self.in_chans, size, what, usable_cores())
                raw = self._drop_bad(split, raw, bad)
            else:
                log.info("%s images are decoded at every read (%.1f GB is over data.cache_gb)", split, gigabytes)
        if not len(store):
            raise DataError(f"the {split} split has no sample left")
        return ImageDataset(
            store,
            raw.labels,
            raw.names,
            self.info,
            seed=self.seed,
            center_crop=self.center_crop,
            interpolation=self.interpolation,
            skip_bad=self.skip_bad,
            augment=self.augment if is_train else None,
        )

    def _convert(self, pixels: Tensor, size: tuple[int, int] | None) -> Tensor:
        """Raw uint8 (N, C, h, w) -> (N, in_chans, H, W), resized now if that fits into cache_gb."""
        if self.in_chans == 3 and pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        elif self.in_chans == 1 and pixels.shape[1] == 3:
            pixels = F.rgb_to_grayscale(pixels)
        if size is None or self.cache is False:
            return pixels
        if self.cache == "auto" and len(pixels) * self.in_chans * math.prod(size) / 1e9 > self.cache_gb:
            return pixels
        parts = [fit(part, size, self.center_crop, self.interpolation) for part in pixels.split(4096)]
        return torch.cat(parts)

    def _check_labels(self, split: str, raw: RawSplit) -> RawSplit:
        outside = (raw.labels < 0) | (raw.labels >= self.info.num_classes)
        bad = {
            i: f"{raw.names[i]}: label {int(raw.labels[i])} is outside 0..{self.info.num_classes - 1}"
            for i in outside.nonzero().flatten().tolist()
        }
        return self._drop_bad(split, raw, bad)

    def _drop_bad(self, split: str, raw: RawSplit, bad: dict[int, str]) -> RawSplit:
        if not bad:
            return raw
        first = next(iter(bad.values()))
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        if not self.skip_bad:
            raise DataError(f"{first}{more}; data.on_bad_sample=skip leaves such samples out")
        for reason in bad.values():
            log.warning("skipped %s", reason)
        log.warning("%d of %d %s samples are bad and were skipped", len(bad), len(raw.labels), split)
        return raw.select(torch.tensor([i for i in range(len(raw.labels)) if i not in bad], dtype=torch.int64))


def auto_workers(cores: int, processes: int, is_light: bool, on_gpu: bool) -> int:
    """Loader workers per training process.

    Light batches (one indexing of memory) cost less than handing them from process to process. On a CPU that also
    trains, every worker takes a core from the computation.
    """
    if is_light:
        return 0
    mine = max(1, cores // processes)
    return min(16, max(1, mine - 1)) if on_gpu else min(8, max(1, mine // 4))


def _is_light(dataset: ImageDataset) -> bool:
    is_sized = isinstance(dataset.store, MemoryStore) and dataset.store.pixels.shape[-2:] == dataset.info.image_size
    return is_sized and (dataset.augment is None or dataset.augment.is_light)


def _decode(path: str, in_chans: int, size: tuple[int, int] | None, center_crop: float, interpolation: str) -> Tensor:
    image = read_image(path, in_chans)
    return image if size is None else fit(image, size, center_crop, interpolation)


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
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

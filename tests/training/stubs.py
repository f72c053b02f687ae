"""A tiny task on random data: enough of a backbone, a data module and a trainer to train for a second."""

from functools import partial

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vantage.data.info import DataInfo
from vantage.tasks.classification.module import Classification
from vantage.training.checkpoint import BestAndLast
from vantage.training.loggers.csv import CSVMetrics
from vantage.training.nan_guard import NaNGuard
from vantage.training.optimizer import OptimizerFactory
from vantage.training.schedule import OneCycle

INFO = DataInfo(
    num_classes=7, class_names=list("abcdefg"), in_chans=3, image_size=(8, 8), mean=[0.5] * 3, std=[0.25] * 3
)


class TinyBackbone(nn.Module):
    """Convolution, batch norm, dropout, linear: parameters that decay and that do not, buffers, randomness."""

    def __init__(self, num_classes: int, in_chans: int, img_size: tuple[int, int], dropout: float = 0.1):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.dropout(self.norm(self.conv(images)).relu().mean((2, 3))))


class PlainBackbone(TinyBackbone):
    """Without batch statistics or randomness: a batch equals the sum of its parts."""

    def __init__(self, num_classes: int, in_chans: int, img_size: tuple[int, int]):
        super().__init__(num_classes, in_chans, img_size, dropout=0.0)
        self.norm = nn.GroupNorm(2, 8)


class Blobs(Dataset):
    """Images whose mean colour follows their label; `noisy` adds noise drawn anew each time, in the worker."""

    def __init__(self, length: int, seed: int, noisy: bool):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(length) % INFO.num_classes
        colours = torch.randn(INFO.num_classes, 3, 1, 1, generator=torch.Generator().manual_seed(7))
        self.images = colours[self.labels] + 0.7 * torch.randn(length, 3, 8, 8, generator=generator)
        self.noisy = noisy

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.images[index]
        if self.noisy:
            image = image + 0.1 * torch.randn_like(image)
        return {"image": image, "label": self.labels[index], "index": index}


class TinyData(pl.LightningDataModule):
    def __init__(self, *, num_workers: int = 0, train: int = 56, batch_size: int = 8, shuffle: bool = True):
        super().__init__()
        self.num_workers, self.train, self.batch_size, self.shuffle = num_workers, train, batch_size, shuffle
        self.info = INFO

    def loader(self, length, seed, shuffle, noisy):
        return DataLoader(Blobs(length, seed, noisy), self.batch_size, shuffle=shuffle, num_workers=self.num_workers)

    def train_dataloader(self):
        return self.loader(self.train, 0, self.shuffle, noisy=self.shuffle)

    def val_dataloader(self):
        return self.loader(29, 1, False, noisy=False)

    def test_dataloader(self):
        return self.loader(30, 2, False, noisy=False)


def adamw(lr: float = 1e-2, weight_decay: float = 0.05, **scales: float) -> OptimizerFactory:
    return OptimizerFactory(
        lr=lr, weight_decay=weight_decay, optimizer=partial(torch.optim.AdamW, fused=True), **scales
    )


def sgd(lr: float = 0.1) -> OptimizerFactory:
    return OptimizerFactory(lr=lr, weight_decay=0.0, optimizer=torch.optim.SGD)


def make_task(backbone=TinyBackbone, *, optimizer=None, scheduler=None, **options) -> Classification:
    return Classification(
        backbone=partial(backbone),
        data=INFO,
        optimizer=optimizer or adamw(),
        scheduler=scheduler or OneCycle(),
        **{"label_smoothing": 0.0, **options},
    )


def make_trainer(run_dir, *, callbacks=(), **options) -> pl.Trainer:
    """The default callbacks and metrics.csv on one CPU process, as configs/ sets them up, but silent."""
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "log_every_n_steps": 5,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "default_root_dir": str(run_dir),
    }
    everyone = [BestAndLast(run_dir=str(run_dir)), NaNGuard(directory=str(run_dir)), *callbacks]
    return pl.Trainer(**{**defaults, "logger": [CSVMetrics(save_dir=str(run_dir))], **options}, callbacks=everyone)


def fit(run_dir, *, seed: int = 0, data=None, task=None, ckpt_path=None, callbacks=(), trainer=None, **task_options):
    """Seeds, builds, trains; returns (trainer, task)."""
    pl.seed_everything(seed, workers=True, verbose=False)
    task = task or make_task(**task_options)
    built = make_trainer(run_dir, callbacks=callbacks, **(trainer or {}))
    built.fit(task, datamodule=data or TinyData(), ckpt_path=ckpt_path)
    return built, task

"""What is promised of batches: the same for any number of workers, every sample once, nothing dropped unsaid."""

import itertools
import logging
import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from vantage.data.augment import Augment
from vantage.data.base import auto_workers
from vantage.data.dataset import EpochSampler
from vantage.data.digits import Digits
from vantage.data.errors import DataError
from vantage.data.image_folder import ImageFolder

from .writers import write_folder

HEAVY = Augment(crop="pad", flip=0.5, rotate_deg=10.0, rand_augment_ops=1, erase=0.5, erase_value="noise")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("folder"), {"train": {"a": 30, "b": 20}, "test": {"a": 5, "b": 6}})


def epochs(data, count=2):
    loader = data.train_dataloader()
    batches = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        batches.extend(loader)
    return batches


def equal(first, second):
    return len(first) == len(second) and all(torch.equal(a[key], b[key]) for a, b in zip(first, second) for key in a)


@pytest.mark.parametrize("cache", [True, False])
def test_batches_do_not_depend_on_workers(folder, cache):
    def run(workers, seed=0, draws=0):
        torch.manual_seed(17)
        torch.rand(draws)  # a model that has drawn from the global generator
        options = {"num_workers": workers, "seed": seed, "cache": cache, "batch_size": 8, "image_size": 24}
        return epochs(ImageFolder(root=str(folder), augment=HEAVY, **options))

    alone = run(0)
    assert equal(alone, run(1, draws=3))
    assert equal(alone, run(2, draws=5))
    assert not equal(alone, run(0, seed=1))
    assert not torch.equal(alone[0]["index"], alone[len(alone) // 2]["index"])  # another epoch, another order


def test_the_same_sample_looks_different_in_another_epoch():
    data = Digits(augment=HEAVY, batch_size=1258)
    first, second = epochs(data)
    a, b = (batch["image"][batch["index"].argsort()] for batch in (first, second))
    assert (a != b).flatten(1).any(1).float().mean() > 0.95


def test_loading_leaves_the_global_generator_alone():
    loader = Digits(augment=HEAVY, num_workers=0).train_dataloader()
    iterator = iter(loader)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iterator)
    next(iterator)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_sample_once_and_drop_last(caplog):
    data = Digits(batch_size=100, drop_last=False, eval_batch_size=64)
    index = torch.cat([batch["index"] for batch in data.train_dataloader()])
    assert torch.equal(index.sort().values, torch.arange(1258))
    for loader, size in ((data.val_dataloader(), 180), (data.test_dataloader(), 359)):
        index = torch.cat([batch["index"] for batch in loader])
        assert torch.equal(index, torch.arange(size))
    with caplog.at_level(logging.INFO):
        loader = Digits(batch_size=100, drop_last=True).train_dataloader()
    assert [len(batch["label"]) for batch in loader] == [100] * 12 and len(loader) == 12  # noqa: PT018
    assert "the last 58 samples" in caplog.text
    with pytest.raises(DataError, match=r"data\.drop_last=true leaves no batch"):
        Digits(batch_size=1259).train_dataloader()


def test_distributed_shares(monkeypatch):
    dataset = Digits()
    dataset.setup()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)

    def shares(split, **options):
        parts = []
        for rank in range(4):
            monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            sampler = EpochSampler(dataset.datasets[split], seed=0, **options)
            parts.append(list(sampler))
            assert len(parts[-1]) == len(sampler)
        return parts

    evaluation = shares("test", shuffle=False, repeat=False)
    assert sorted(itertools.chain(*evaluation)) == list(range(359))  # no sample twice: metrics count each once
    training = shares("train", shuffle=True, repeat=True)
    assert {len(part) for part in training} == {315}
    assert set(itertools.chain(*training)) == set(range(1258))


class Tiny(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(32 * 32, 10)
        self.seen = {"train": [], "val": [], "test": []}

    def _step(self, split, batch):
        self.seen[split].append(batch["index"])
        return F.cross_entropy(self.head(batch["image"].flatten(1)), batch["label"])

    def training_step(self, batch, batch_idx):
        return self._step("train", batch)

    def validation_step(self, batch, batch_idx):
        self._step("val", batch)

    def test_step(self, batch, batch_idx):
        self._step("test", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", enable_model_summary=False, num_sanity_val_steps=0, **quiet, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_trains_in_a_new_order_each_epoch(workers):
    data, model = Digits(num_workers=workers, drop_last=False, batch_size=200), Tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("error", pl.utilities.warnings.PossibleUserWarning)
        trainer(max_epochs=2).fit(model, datamodule=data)
        trainer().test(model, datamodule=data)
    orders = torch.cat(model.seen["train"]).view(2, 1258)
    assert torch.equal(orders.sort().values, torch.arange(1258).expand(2, -1))
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(torch.cat(model.seen["val"]), torch.arange(180).repeat(2))
    assert torch.equal(torch.cat(model.seen["test"]), torch.arange(359))
    assert torch.equal(orders[0], torch.cat([b["index"] for b in epochs(data, 1)]))


def test_overfitting_sees_the_same_batch_each_epoch():
    data, model = Digits(batch_size=32), Tiny()
    trainer(max_epochs=3, overfit_batches=1).fit(model, datamodule=data)
    first, second, third = model.seen["train"]
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_auto_workers():
    assert auto_workers(64, 1, is_light=True, on_gpu=False) == 0
    assert auto_workers(2, 1, is_light=False, on_gpu=False) == 1
    assert auto_workers(64, 1, is_light=False, on_gpu=False) == 8
    assert auto_workers(64, 8, is_light=False, on_gpu=True) == 7
    assert auto_workers(64, 1, is_light=False, on_gpu=True) == 16
    assert auto_workers(1, 1, is_light=False, on_gpu=True) == 1
    assert Digits(augment=Augment(flip=0.5)).train_dataloader().num_workers == 0
    assert Digits(augment=HEAVY).train_dataloader().num_workers >= 1

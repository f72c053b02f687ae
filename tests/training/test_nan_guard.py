"""A loss that is not finite stops the run with one sentence, a dump, and untouched weights."""

import re

import pytest
import pytorch_lightning as pl
import torch
from torchvision import tv_tensors

from vantage.training.nan_guard import NonFiniteLossError

from .stubs import PlainBackbone, TinyData, fit, make_task, make_trainer

BAD = 9  # of the run's batches, counted from 0: the third of the second epoch


class Poison(pl.Callback):
    """Makes one batch's image infinite and remembers the weights before it."""

    def __init__(self, value):
        self.value, self.seen, self.before = value, 0, None

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if self.seen == BAD:
            batch["image"] = tv_tensors.Image(batch["image"])
            batch["image"][0] = self.value
            self.before = {key: value.clone() for key, value in task.state_dict().items()}
            self.batch = batch
        self.seen += 1


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_stops_before_the_weights_move(tmp_path, accumulate, value):
    poison = Poison(value)
    pl.seed_everything(0, verbose=False)
    task = make_task(PlainBackbone)
    options = {"max_epochs": 3, "accumulate_grad_batches": accumulate, "gradient_clip_val": 1.0}
    trainer = make_trainer(tmp_path, callbacks=[poison], **options)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(task, datamodule=TinyData())

    step = {1: 9, 2: 5, 3: 3}[accumulate]  # updates before the batch; 7 batches an epoch
    message = str(caught.value)
    found = re.search(
        r"the loss is nan at step (\d+) \(epoch 1, batch 2\), learning rate (\S+), gradient norm (\S+);", message
    )
    assert found, message
    assert "\n" not in message
    assert int(found[1]) == step == trainer.global_step
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert float(found[2]) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-2)
    assert found[3] == "nan"
    for key, stored in poison.before.items():
        assert torch.equal(task.state_dict()[key], stored), key

    dump = torch.load(tmp_path / "nan_batch.pt", weights_only=True)
    assert type(dump["batch"]["image"]) is torch.Tensor
    torch.testing.assert_close(dump["batch"]["image"], torch.Tensor(poison.batch["image"]), equal_nan=True)
    assert torch.equal(dump["batch"]["label"], poison.batch["label"])
    assert (dump["step"], dump["epoch"], dump["batch_idx"]) == (step, 1, 2)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 0
    assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_the_gradient_norm_is_that_of_the_batch(tmp_path, monkeypatch):
    """A loss that is infinite in value with a finite gradient: the norm in the dump is the gradient's."""
    task = make_task(PlainBackbone)
    shared = type(task).training_step

    def infinite(self, batch, batch_idx):
        out = shared(self, batch, batch_idx)
        if self.global_step == 4:
            out["loss"] = out["loss"] + float("inf")
        return out

    monkeypatch.setattr(type(task), "training_step", infinite)
    with pytest.raises(NonFiniteLossError, match="the loss is inf at step 4"):
        fit(tmp_path, task=task)
    gradients = torch.cat([parameter.grad.flatten() for parameter in task.parameters()])
    dump = torch.load(tmp_path / "nan_batch.pt", weights_only=True)
    assert dump["gradient_norm"] == pytest.approx(gradients.norm().item(), rel=1e-5)
    assert dump["loss"] == float("inf")


def test_a_healthy_run_leaves_no_dump(tmp_path):
    fit(tmp_path)
    assert not (tmp_path / "nan_batch.pt").exists()

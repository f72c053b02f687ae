"""When pictures are drawn, where they go, and that one that fails does not end a run."""

import logging

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch.utils.data import DataLoader

from vantage.analysis.figures import blank
from vantage.training.meter import EpochMeter
from vantage.training.pictures import Pictures


class Told:
    """Pictures that remember what they were told."""

    every_validation = False

    def __init__(self):
        self.calls = []

    def first_batch(self, batch, outputs):
        self.calls.append(("first_batch", float(batch[0]), float(outputs["seen"])))
        return {"first_batch": blank(1, 0.5)}

    def start(self):
        self.calls.append("start")

    def update(self, batch, outputs):
        self.calls.append(float(outputs["doubled"]))

    def finish(self, split, name_of):
        self.calls.append((split, name_of(3)))
        return {f"all_{split}": blank(1, 1)}


class Task(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.meter = EpochMeter()
        self.told = Told()

    def pictures(self):
        return self.told

    def training_step(self, batch, batch_idx):
        return {"loss": self.layer(batch[:, None]).sum(), "seen": batch[0] + 0.5}

    def validation_step(self, batch, batch_idx):
        return {"doubled": 2 * batch[0]}

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Gallery(Logger):
    name, version = "gallery", ""

    def __init__(self):
        super().__init__()
        self.images = []
        self.masks = []

    def log_hyperparams(self, *_):
        pass

    def log_metrics(self, *_, **__):
        pass

    def log_image(self, key, images, step=None):
        self.images.append((key, images, step))

    def log_masks(self, key, panels, step=None):
        self.masks.append((key, panels, step))


def run(tmp_path, task, *, sanity=0):
    gallery = Gallery()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[Pictures(run_dir=str(tmp_path))],
        logger=gallery,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=sanity,
        default_root_dir=tmp_path,
    )
    loader = DataLoader(torch.arange(1.0, 4.0))
    trainer.fit(task, loader, loader)
    trainer.test(task, loader, verbose=False)
    return gallery


@pytest.mark.parametrize("sanity", [0, 1])
def test_the_first_batch_the_last_validation_and_the_test(tmp_path, sanity):
    task = Task()
    gallery = run(tmp_path, task, sanity=sanity)
    calls = task.told.calls[sanity:]  # the sanity check starts a pass and is not collected
    one_pass = ["start", 2.0, 4.0, 6.0]
    assert calls == [("first_batch", 1.0, 1.5), *one_pass, *one_pass, ("val", "#3"), *one_pass, ("test", "#3")]
    files = ["first_batch", "all_val", "all_test"]
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {f"{name}.png" for name in files}
    assert [(key, images) for key, images, _ in gallery.images] == [
        (f"pictures/{name}", [str(tmp_path / "pictures" / f"{name}.png")]) for name in files
    ]
    assert [step for _, _, step in gallery.images] == [1, 6, 6]


def test_pictures_of_every_validation_if_the_task_wants_them(tmp_path):
    task = Task()
    task.told.every_validation = True
    gallery = run(tmp_path, task, sanity=1)
    one_pass = ["start", 2.0, 4.0, 6.0]
    every = [*one_pass, ("val", "#3")]
    assert task.told.calls[1:] == [("first_batch", 1.0, 1.5), *every, *every, *one_pass, ("test", "#3")]
    assert [step for key, _, step in gallery.images if key == "pictures/all_val"] == [3, 6]


def test_a_picture_that_fails_is_told_and_the_run_goes_on(tmp_path, caplog):
    task = Task()

    def fail(split, name_of):
        raise ArithmeticError("no ink")

    task.told.finish = fail
    with caplog.at_level(logging.ERROR):
        run(tmp_path, task)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["first_batch.png"]
    assert "no ink" in caplog.text


class ToldOfMasks(Told):
    every_validation = True

    def mask_panels(self, split):
        self.calls.append(f"masks of {split}")
        return [{"name": f"last of {split}"}] if split == "val" else []


def test_masks_go_to_loggers_that_take_them_after_the_figures(tmp_path):
    task = Task()
    task.told = ToldOfMasks()
    gallery = run(tmp_path, task)
    told = [("val", "#3"), "masks of val", ("test", "#3"), "masks of test"]
    assert [call for call in task.told.calls if call in told] == told[:2] * 2 + told[2:]
    panels = [{"name": "last of val"}]
    assert gallery.masks == [("pictures/masks_val", panels, 3), ("pictures/masks_val", panels, 6)]  # and no empty ones


def test_tasks_without_masks_and_loggers_that_take_none_are_left_alone(tmp_path, monkeypatch):
    assert run(tmp_path / "a", Task()).masks == []
    monkeypatch.delattr(Gallery, "log_masks")
    task = Task()
    task.told = ToldOfMasks()
    run(tmp_path / "b", task)
    assert "masks of val" not in task.told.calls


def test_masks_that_fail_are_told_and_the_figures_are_there(tmp_path, caplog, monkeypatch):
    def fail(*_, **__):
        raise ArithmeticError("no crayons")

    monkeypatch.setattr(Gallery, "log_masks", fail)
    task = Task()
    task.told = ToldOfMasks()
    with caplog.at_level(logging.ERROR):
        run(tmp_path, task)
    assert "no crayons" in caplog.text
    assert (tmp_path / "pictures" / "all_val.png").is_file()

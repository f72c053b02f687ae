"""What is in run_dir/checkpoints, and which file stands for the run."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping

from vantage.training import checkpoint as checkpoints
from vantage.training.checkpoint import BestAndLast
from vantage.training.ema import EMA

from .stubs import INFO, TinyData, fit, make_task


class Pretend(pl.Callback):
    """Logs a metric whose values are known."""

    def __init__(self, values, key):
        self.values, self.key = values, key

    def on_validation_epoch_end(self, trainer, task):
        if not trainer.sanity_checking:
            task.log(self.key, torch.tensor(self.values[trainer.current_epoch]), batch_size=1)


def run(run_dir, values, *, monitor="val/pretended", mode="max", **options):
    pl.seed_everything(0, verbose=False)
    callbacks = [Pretend(values, monitor), BestAndLast(run_dir=str(run_dir), monitor=monitor, mode=mode)]
    trainer = pl.Trainer(
        **{"max_epochs": len(values), "accelerator": "cpu", "devices": 1, "logger": False, **options},
        callbacks=callbacks,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=1,
        default_root_dir=str(run_dir),
    )
    trainer.fit(make_task(), datamodule=TinyData())
    return callbacks[1]


def epoch_of(path):
    return torch.load(path, weights_only=True)["epoch"]


@pytest.mark.parametrize(
    ("values", "mode", "best"),
    [
        ([0.1, 0.9, 0.5], "max", 1),
        ([0.9, 0.2, 0.9, 0.3], "max", 2),
        ([0.9, 0.2, 0.4], "min", 1),
        ([float("nan"), 0.2, float("nan")], "max", 1),
    ],
    ids=["highest", "later_of_two", "lowest", "nan"],
)
def test_best_is_the_epoch_of_the_best_value_and_last_the_last(tmp_path, values, mode, best):
    keeper = run(tmp_path, values, mode=mode)
    assert epoch_of(tmp_path / "checkpoints" / "best.ckpt") == best == keeper.best_epoch
    assert epoch_of(tmp_path / "checkpoints" / "last.ckpt") == len(values) - 1
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert checkpoints.pick(tmp_path) == tmp_path / "checkpoints" / "best.ckpt"


def test_without_validation_last_stands_for_the_run(tmp_path):
    run(tmp_path, [0.0, 0.0], limit_val_batches=0)
    assert checkpoints.pick(str(tmp_path)) == tmp_path / "checkpoints" / "last.ckpt"


def test_a_validation_inside_the_epoch_saves_the_weights_it_saw(tmp_path):
    class Falls(Pretend):
        def on_validation_epoch_end(self, trainer, task):
            task.log(self.key, torch.tensor(1.0 - trainer.global_step / 100), batch_size=1)

    pl.seed_everything(0, verbose=False)
    keeper = BestAndLast(run_dir=str(tmp_path), monitor="val/pretended")
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_model_summary=False, enable_progress_bar=False,
        num_sanity_val_steps=0, max_epochs=1, val_check_interval=3, callbacks=[Falls([], "val/pretended"), keeper],
    )  # fmt: skip
    trainer.fit(make_task(), datamodule=TinyData())
    assert torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 3
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 7


def test_max_steps_inside_an_epoch_saves_the_last_state(tmp_path):
    fit(tmp_path, trainer={"max_epochs": 5, "max_steps": 10})
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 10


def test_an_empty_run_directory_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint: neither checkpoints/best.ckpt nor"):
        checkpoints.pick(tmp_path)


def test_a_metric_that_is_not_logged_is_named_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"monitors 'val/acc', which is not logged; use one of .*val/acc1"):
        fit(tmp_path, callbacks=[BestAndLast(run_dir=str(tmp_path), monitor="val/acc")])


def test_everything_in_it_is_plain(tmp_path):
    """weights_only=True loads it with every callback on, and what rebuilds the task is text and numbers."""
    task = make_task()
    task.config_text = "task: {label_smoothing: 0.1}\n"
    stopping = EarlyStopping("val/acc1", mode="max", patience=50)
    fit(tmp_path, task=task, callbacks=[EMA(), stopping], trainer={"gradient_clip_val": 1.0})
    for name in ("best", "last"):
        stored = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert stored["vantage"] == {
            "config": "task: {label_smoothing: 0.1}\n",
            "num_classes": 7,
            "class_names": INFO.class_names,
            "in_chans": 3,
            "image_size": [8, 8],
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
            "palette": None,
            "wraps": False,
            "scale": 1,
            "total_steps": 14,
        }
        fresh = make_task()
        fresh.load_state_dict(stored["state_dict"])


def test_a_fast_dev_run_leaves_no_checkpoint(tmp_path):
    fit(tmp_path, trainer={"fast_dev_run": True})
    assert not (tmp_path / "checkpoints").exists()


def test_a_resumed_run_brings_its_best_checkpoint_along(tmp_path):
    """Its best value came from the first half; without the file a test would take the last epoch."""
    first, second = tmp_path / "a", tmp_path / "b"

    def go(run_dir, values, stop, ckpt_path=None):
        class Stop(pl.Callback):
            def on_train_epoch_end(self, trainer, task):
                trainer.should_stop = trainer.current_epoch + 1 == stop

        keeper = BestAndLast(run_dir=str(run_dir), monitor="val/pretended")
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, logger=False, enable_model_summary=False, enable_progress_bar=False,
            num_sanity_val_steps=0, max_epochs=4, callbacks=[Pretend(values, "val/pretended"), Stop(), keeper],
        )  # fmt: skip
        trainer.fit(make_task(), datamodule=TinyData(), ckpt_path=ckpt_path)

    values = [0.2, 0.9, 0.3, 0.4]
    go(first, values, 2)
    go(second, values, 4, str(first / "checkpoints" / "last.ckpt"))
    assert epoch_of(checkpoints.pick(second)) == 1
    assert epoch_of(second / "checkpoints" / "last.ckpt") == 3
    (first / "checkpoints" / "best.ckpt").unlink()
    go(tmp_path / "c", values, 4, str(first / "checkpoints" / "last.ckpt"))
    assert epoch_of(checkpoints.pick(tmp_path / "c")) == 3

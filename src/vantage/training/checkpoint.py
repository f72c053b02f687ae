"""Checkpoints of a run, checkpoints/last.ckpt and checkpoints/best.ckpt, and the rule that picks the one to test."""

import math
import os
import shutil
from pathlib import Path

import pytorch_lightning as pl

FOLDER = "checkpoints"


def pick(run_dir: str | Path) -> Path:
    """The checkpoint that stands for a run: best.ckpt where there is one, else last.ckpt."""
    folder = Path(run_dir) / FOLDER
    for name in ("best.ckpt", "last.ckpt"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{run_dir} holds no checkpoint: neither {FOLDER}/best.ckpt nor {FOLDER}/last.ckpt exists")


class BestAndLast(pl.callbacks.Checkpoint):
    """Writes last.ckpt after every epoch and best.ckpt when `monitor`, None: the task's own, is as good as before.

    Of equally good epochs the later wins: its learning rate is lower, and on a small validation set ties are common.
    A file is complete or absent: it is written beside its place and moved there.
    """

    def __init__(self, *, run_dir: str, monitor: str | None = None, mode: str = "max"):
        if mode not in ("max", "min"):
            raise ValueError(f"callbacks: the checkpoint's mode is '{mode}'; use max or min")
        self.folder = Path(run_dir) / FOLDER
        self.monitor = monitor
        self.mode = mode
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._best_is_due = False
        self._saved_step = -1

    @property
    def state_key(self) -> str:
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        if self.monitor is None:
            self.monitor = task.monitor

    def state_dict(self) -> dict:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict) -> None:
        self.best = state_dict["best"]
        self.best_epoch = state_dict["best_epoch"]

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """A run resumed in another directory takes its best checkpoint along, or forgets that there was one."""
        if self.best is None or (self.folder / "best.ckpt").is_file():
            return
        earlier = Path(trainer.ckpt_path or "").parent / "best.ckpt"
        if not earlier.is_file():
            self.best = self.best_epoch = None
        elif trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(earlier, self.folder / "best.ckpt")

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.fast_dev_run or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            known = ", ".join(sorted(key for key in trainer.callback_metrics if key.startswith("val/")))
            raise ValueError(
                f"callbacks: the checkpoint monitors '{self.monitor}', which is not logged; use one of {known}"
            )
        value = float(value)
        if math.isnan(value):
            return
        if self.best is None or (value >= self.best if self.mode == "max" else value <= self.best):
            self.best, self.best_epoch = value, trainer.current_epoch
            self._best_is_due = True
            if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                self.save_best(trainer)  # in the middle of an epoch; its end would be another state

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self.save_last(trainer)

    def save_last(self, trainer: pl.Trainer) -> None:
        if trainer.fast_dev_run:
            return
        self.write(trainer, "last.ckpt")
        self._saved_step = trainer.global_step
        if self._best_is_due and trainer.is_global_zero:
            part = self.folder / "best.ckpt.part"
            shutil.copyfile(self.folder / "last.ckpt", part)
            os.replace(part, self.folder / "best.ckpt")
        self._best_is_due = False

    def save_best(self, trainer: pl.Trainer) -> None:
        self.write(trainer, "best.ckpt")
        self._best_is_due = False

    def write(self, trainer: pl.Trainer, name: str) -> None:
        part = self.folder / f"{name}.part"
        trainer.save_checkpoint(part, weights_only=False)
        if trainer.is_global_zero:
            os.replace(part, self.folder / name)
        trainer.strategy.barrier("checkpoint")

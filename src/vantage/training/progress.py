"""Progress of a run: a bar on a terminal, plain lines elsewhere, and one line per epoch in both.

Cheap by design: a step costs a clock reading; the loss is fetched from the device when the bar is drawn, twice a
second.
"""

import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


class ProgressReport(pl.Callback):
    """Shows loss, `metric` of the last validation (None: the task's own), images/s and the remaining time.

    Without a terminal a line is printed at most every `line_seconds` and after each epoch.
    """

    def __init__(self, *, metric: str | None = None, refresh_seconds: float = 0.5, line_seconds: float = 30.0):
        self.metric = metric
        self.refresh_seconds = refresh_seconds
        self.line_seconds = line_seconds
        self.console = Console()
        self.bar: Progress | None = None
        self._next = 0.0

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        if self.metric is None:
            self.metric = task.monitor

    def begin(self, total: float | None, label: str) -> None:
        """Starts a bar of `total` batches, or nothing where there is no terminal."""
        self._begun = time.perf_counter()
        self._next = self._begun + (self.refresh_seconds if self.console.is_terminal else self.line_seconds)
        self._done = 0
        self._total = total if total and total != float("inf") else None
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[text]}"))
            self.bar = Progress(*columns, console=self.console, auto_refresh=False, expand=True, transient=True)
            self.bar.start()
            self._bar_task = self.bar.add_task(label, total=self._total, text="")

    def end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def remaining(self) -> str:
        if not self._total or not 0 < self._done < self._total:
            return ""
        seconds = (time.perf_counter() - self._begun) / self._done * (self._total - self._done)
        return f"{as_clock(seconds)} left"

    def due(self) -> bool:
        now = time.perf_counter()
        if now < self._next:
            return False
        self._next = now + (self.refresh_seconds if self.bar is not None else self.line_seconds)
        return True

    def show(self, label: str, text: str) -> None:
        if self.bar is not None:
            self.bar.update(self._bar_task, description=label, completed=self._done, text=text)
            self.bar.refresh()
        else:
            self.console.print(f"{label}  {text}", highlight=False, soft_wrap=True)

    def training_text(self, trainer: pl.Trainer, task: pl.LightningModule) -> str:
        parts = [f"{key} {float(value):.4f}" for key, value in task.meter.means().items() if key == "loss"]
        if (value := trainer.callback_metrics.get(self.metric)) is not None:
            parts.append(f"{self.metric} {float(value):.4f}")
        parts.append(f"{task.meter.images_per_second * trainer.world_size:.0f} images/s")
        return "  ".join([*parts, self.remaining()]).rstrip()

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        batches, epochs = trainer.num_training_batches, trainer.max_epochs
        total = batches * (epochs - trainer.current_epoch) if epochs and epochs > 0 else None
        if trainer.max_steps > 0:
            steps = (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches
            total = min(total, steps) if total else steps
        self.begin(total, "training")

    def on_train_batch_end(self, trainer, task, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.is_global_zero:
            return
        self._done += 1
        if self.due():
            label = f"{epoch_label(trainer)} batch {batch_idx + 1}/{trainer.num_training_batches}"
            self.show(label, self.training_text(trainer, task))

    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            line = f"{epoch_label(trainer)}  {self.training_text(trainer, task)}"
            self.console.print(line, highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.end()

    def on_exception(self, trainer: pl.Trainer, task: pl.LightningModule, exception: BaseException) -> None:
        self.end()

    def on_test_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.begin(sum(trainer.num_test_batches), "testing")

    def on_test_batch_end(
        self, trainer, task, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.is_global_zero:
            self._done += 1
            if self.due():
                self.show(f"testing  batch {self._done}/{self._total}", self.remaining())

    def on_test_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.end()


def epoch_label(trainer: pl.Trainer) -> str:
    epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{epochs}"


def as_clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

"""Pictures of a run, in pictures/ and in every logger that takes images (W&B): drawn by the task, at the right time."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from vantage.analysis.figures import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

Figures = dict[str, "Figure"]


class TaskPictures(Protocol):
    """What a task's `pictures()` returns: it is told what passes by, and asked for figures, by file name.

    It may also have `mask_panels(split)`: pictures with class maps of the same size, for loggers with `log_masks`
    (W&B lays the maps over the picture), as dicts of name, image (H, W, 3) uint8, prediction and ground_truth (H, W)
    uint8, and class_labels {value: name}. It is asked after `finish`.
    """

    every_validation: bool  # draw after each validation of a training, not only after the last

    def first_batch(self, batch: Any, outputs: Any) -> Figures:
        """The first training batch as the model saw it; `outputs` is what training_step returned."""

    def start(self) -> None:
        """A pass over a split begins; what was collected before is forgotten."""

    def update(self, batch: Any, outputs: Any) -> None: ...

    def finish(self, split: str, name_of: Callable[[int], str]) -> Figures:
        """The pass is over; `name_of` tells what a sample's index stands for."""


class Pictures(pl.Callback):
    """Draws the first training batch, the last validation pass of a training or each of them, as the task's pictures
    want it, and every pass of test or validate.

    A picture that fails is logged with its traceback and does not end the run: the numbers are worth more. Of a
    distributed run the main process draws its own share of the samples.
    """

    def __init__(self, *, run_dir: str):
        self.folder = Path(run_dir) / "pictures"
        self.pictures: TaskPictures | None = None
        self.first_batch_is_due = True
        self.collected = False

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        if self.pictures is None:
            self.pictures = task.pictures()

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
        if self.first_batch_is_due and trainer.is_global_zero:
            self.first_batch_is_due = False
            task.meter.stop_clock()
            self.draw(trainer, lambda: self.pictures.first_batch(batch, outputs))
            task.meter.start_clock()

    def on_validation_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.start()

    def on_test_epoch_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.start()

    def on_validation_batch_end(self, trainer, task, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        if not trainer.sanity_checking:
            self.update(batch, outputs)

    def on_test_batch_end(self, trainer, task, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.update(batch, outputs)

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING or (self.pictures.every_validation and not trainer.sanity_checking):
            self.finish(trainer, "val")

    def on_fit_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if not self.pictures.every_validation:
            self.finish(trainer, "val")

    def on_test_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.finish(trainer, "test")

    def start(self) -> None:
        self.collected = False
        self.pictures.start()

    def update(self, batch: Any, outputs: Any) -> None:
        self.collected = True
        self.pictures.update(batch, outputs)

    def finish(self, trainer: pl.Trainer, split: str) -> None:
        def name_of(index: int) -> str:
            return trainer.datamodule.sample_name(split, index) if trainer.datamodule is not None else f"#{index}"

        if self.collected and trainer.is_global_zero:
            self.draw(trainer, lambda: self.pictures.finish(split, name_of))
            self.log_masks(trainer, split)

    def log_masks(self, trainer: pl.Trainer, split: str) -> None:
        sinks = [sink for sink in trainer.loggers if hasattr(sink, "log_masks")]
        if not sinks or not hasattr(self.pictures, "mask_panels"):
            return
        try:
            panels = self.pictures.mask_panels(split)
            for sink in sinks if panels else ():
                sink.log_masks(f"pictures/masks_{split}", panels, step=trainer.global_step)
        except Exception:
            logger.exception("masks could not be logged; the run goes on")

    def draw(self, trainer: pl.Trainer, make: Callable[[], Figures]) -> None:
        try:
            for name, figure in make().items():
                path = save(figure, self.folder / f"{name}.png")
                for sink in trainer.loggers:
                    if hasattr(sink, "log_image"):
                        sink.log_image(f"pictures/{name}", [str(path)], step=trainer.global_step)
        except Exception:
            logger.exception("a picture could not be drawn; the run goes on")

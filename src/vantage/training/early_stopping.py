"""Lightning's early stopping, by the metric of whichever task is trained."""

import pytorch_lightning as pl


class EarlyStopping(pl.callbacks.EarlyStopping):
    """Stops when `monitor` (None: the task's own) has not improved by `min_delta` for `patience` validations."""

    def __init__(self, *, monitor: str | None = None, mode: str = "max", patience: int = 10, min_delta: float = 0.0):
        super().__init__(monitor or "", mode=mode, patience=patience, min_delta=min_delta)

    def setup(self, trainer: pl.Trainer, task: pl.LightningModule, stage: str) -> None:
        self.monitor = self.monitor or task.monitor
        super().setup(trainer, task, stage)

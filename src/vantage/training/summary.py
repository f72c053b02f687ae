"""The model's summary at the start of a training, on the console and in summary.txt."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from rich import get_console
from rich.console import Console

from vantage.analysis.summary import summary


class Summary(pl.Callback):
    def __init__(self, *, run_dir: str):
        self.path = Path(run_dir) / "summary.txt"

    def on_fit_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        weight = next(task.backbone.parameters())
        info = task.data_info
        image = torch.zeros(1, info.in_chans, *info.image_size, device=task.device, dtype=weight.dtype)
        tables = summary(task.backbone, image)
        get_console().print(tables)
        with self.path.open("w") as file:
            Console(file=file, width=140).print(tables)

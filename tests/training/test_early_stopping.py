"""Early stopping by the task's own metric, or by one that was asked for."""

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from vantage.training.early_stopping import EarlyStopping


class Stuck(pl.LightningModule):
    """A validation metric that never improves, and another that does."""

    monitor = "val/stuck"

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[:, None]).sum()

    def validation_step(self, batch, batch_idx):
        self.log_dict({"val/stuck": 0.5, "val/rising": float(self.current_epoch)}, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def epochs(tmp_path, **options):
    run = pl.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[EarlyStopping(patience=2, **options)],
    )  # fmt: skip
    loader = DataLoader(torch.arange(2.0))
    run.fit(Stuck(), loader, loader)
    return run.current_epoch


def test_the_tasks_own_metric_stops_the_run(tmp_path):
    assert epochs(tmp_path) == 3


def test_another_metric_can_be_asked_for(tmp_path):
    assert epochs(tmp_path, monitor="val/rising") == 6

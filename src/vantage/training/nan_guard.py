"""Stops a run whose loss is not finite, before the weights take the step, and keeps the batch that did it."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class NonFiniteLossError(RuntimeError):
    """One sentence: step, learning rate, gradient norm, and where the batch lies."""


class NaNGuard(pl.Callback):
    """Checks the loss of every batch, also of those whose gradients are only accumulated.

    The batch, as the loader gave it (before mixup and cutmix), goes to DIRECTORY/nan_batch.pt: {"batch", "loss",
    "step", "epoch", "batch_idx", "lr", "gradient_norm"}, readable with torch.load(weights_only=True).
    On a GPU the flag travels while the backward pass runs, so that looking at it does not drain the queue.
    """

    def __init__(self, *, directory: str):
        self.directory = directory
        self._batch: Any = None
        self._batch_idx = 0
        self._loss: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch, self._batch_idx = batch, batch_idx

    def on_before_backward(self, trainer: pl.Trainer, task: pl.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach().to("cpu", non_blocking=True)
        if loss.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def on_after_backward(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if self._arrived is not None:
            self._arrived.synchronize()
        if not torch.isfinite(self._loss):
            self.stop(trainer, task)

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
        self._batch = None

    def stop(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        gradients = [parameter.grad for parameter in task.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0
        lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # float16: loss and gradients carry its scale
        scale = scaler.get_scale() if scaler is not None else 1.0
        norm /= scale
        loss = self._loss.item() * trainer.accumulate_grad_batches / scale  # Lightning has divided it
        name = "nan_batch.pt" if trainer.world_size == 1 else f"nan_batch_rank{trainer.global_rank}.pt"
        path = Path(self.directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "batch": tree_map(as_plain, self._batch),
                "loss": loss,
                "step": trainer.global_step,
                "epoch": trainer.current_epoch,
                "batch_idx": self._batch_idx,
                "lr": lr,
                "gradient_norm": norm,
            },
            path,
        )
        raise NonFiniteLossError(
            f"the loss is {loss} at step {trainer.global_step} (epoch {trainer.current_epoch}, batch "
            f"{self._batch_idx}), learning rate {lr:.3g}, gradient norm {norm:.3g}; the weights were not updated and "
            f"the batch is in {path}"
        )


def as_plain(value: Any) -> Any:
    """A tensor on the CPU without its subclass (tv_tensors do not load with weights_only); other values as they are."""
    return value.detach().cpu().as_subclass(torch.Tensor).clone() if isinstance(value, Tensor) else value

"""Exponential moving average of the weights; validation and test see the average.

    average <- d * average + (1 - d) * weights,    d = min(decay, (1 + n) / (10 + n))    after update n = 0, 1, ...

The second term of the minimum is the warm-up: early averages forget the random initialisation quickly. The average
starts as a copy of the weights training starts from, and is used only once it has been updated.

A checkpoint's `state_dict` is the average, that is what was validated; the raw weights, which training continues
from, are under `current_model_state`, the name Lightning gives them.
"""

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

RAW_WEIGHTS = "current_model_state"


class EMA(pl.Callback):
    def __init__(self, *, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay is {decay}; it is in [0, 1), and nearer to 1 averages over longer")
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] | None = None
        self._live: dict[str, Tensor] = {}  # the module's own tensors
        self._raw: dict[str, Tensor] | None = None  # set while the module holds the average
        self._last_step = 0

    def decay_now(self) -> float:
        return min(self.decay, (1 + self.updates) / (10 + self.updates))

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self._live = dict(task.state_dict())
        start = self.average or self._live  # a resumed run has its average already
        self.average = {key: start[key].detach().to(live.device, copy=True) for key, live in self._live.items()}
        self._last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self._last_step:
            return  # gradients are still being accumulated
        self._last_step = trainer.global_step
        floats = [key for key, value in self._live.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[key] for key in floats], [self._live[key] for key in floats], 1 - self.decay_now()
        )
        for key, value in self._live.items():
            if not value.is_floating_point():
                self.average[key].copy_(value)
        self.updates += 1

    @torch.no_grad()
    def use_average(self) -> None:
        if self.average is None or self.updates == 0 or self._raw is not None:
            return
        self._raw = {key: value.clone() for key, value in self._live.items()}
        for key, value in self._live.items():
            value.copy_(self.average[key])

    @torch.no_grad()
    def use_raw(self) -> None:
        if self._raw is None:
            return
        for key, value in self._live.items():
            value.copy_(self._raw[key])
        self._raw = None

    def on_validation_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.use_average()

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.use_raw()

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.use_average()

    def state_dict(self) -> dict:
        return {"updates": self.updates}

    def load_state_dict(self, state_dict: dict) -> None:
        self.updates = state_dict["updates"]

    def on_save_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict) -> None:
        if self.average is None or trainer.state.fn != TrainerFn.FITTING:
            return
        checkpoint[RAW_WEIGHTS] = self._raw if self._raw is not None else checkpoint["state_dict"]
        checkpoint["state_dict"] = self.average

    def on_load_checkpoint(self, trainer: pl.Trainer, task: pl.LightningModule, checkpoint: dict) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return  # a test wants the average, which is what Lightning has just loaded
        if RAW_WEIGHTS not in checkpoint:
            raise ValueError(
                f"{trainer.ckpt_path} was trained without the ema callback and holds no average to resume; "
                "resume without ema in callbacks"
            )
        self.average = {key: value.clone() for key, value in checkpoint["state_dict"].items()}
        task.load_state_dict(checkpoint[RAW_WEIGHTS])

"""What our training step costs over a bare PyTorch loop: python -m vantage.training.bench [overrides].

Both train the same model on the same loader with the same optimizer, schedule, loss and clipping. Ours adds the
LightningModule, progress bar, loggers and callbacks of the default config. The two are interleaved in one process,
block by block, so that a change of the machine's load hits both; the first block of each is warm-up. A block's
clock runs from the arrival of batch 3 to the end of the epoch, loader included: what happens once in a run, such as
the start of the workers and the picture of the first batch, is not a cost of a step.

Printed: images/s of both (median over blocks), the ratio ours/bare (median over pairs of neighbouring blocks), its
range, and the load of the machine before the start: a ratio taken on busy cores means nothing.
"""

# ruff: noqa: E402
import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

from vantage.cli import environment

environment.prepare()  # before torch is imported: its thread pool reads the settings once

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn import functional as F

from vantage.cli.build import build_data, build_group, build_task, build_trainer
from vantage.cli.compose import compose, config_loader
from vantage.data.info import DataInfo
from vantage.training.loggers import finish_loggers

UNTIMED = 3  # steps at the start of a block


class BlockClock(pl.Callback):
    """Times one block of our own training."""

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if batch_idx == UNTIMED:
            self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, task):
        self.seconds = time.perf_counter() - self.start


class BareClassifier(nn.Module):
    def __init__(self, config: DictConfig, info: DataInfo):
        super().__init__()
        self.backbone = build_task(config, info).backbone
        self.smoothing = config.task.label_smoothing

    def forward(self, batch: dict) -> torch.Tensor:
        return F.cross_entropy(self.backbone(batch["image"]), batch["label"], label_smoothing=self.smoothing)


class BareSegmenter(nn.Module):
    """Backbone, decoder and auxiliary head, cross entropy of logits at the picture's size."""

    def __init__(self, config: DictConfig, info: DataInfo):
        super().__init__()
        task = build_task(config, info)
        self.backbone, self.decoder, self.auxiliary = task.backbone, task.decoder, task.auxiliary
        self.weight = config.task.auxiliary_weight

    def forward(self, batch: list[dict]) -> torch.Tensor:
        images, masks = (torch.stack([sample[key] for sample in batch]) for key in ("image", "mask"))
        maps = self.backbone.features(images)
        loss = self.cross_entropy(self.decoder(maps), masks)
        return loss if self.auxiliary is None else loss + self.weight * self.cross_entropy(self.auxiliary(maps), masks)

    def cross_entropy(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        logits = F.interpolate(logits, masks.shape[-2:], mode="bilinear")
        return F.cross_entropy(logits, masks.long(), ignore_index=255)


def bare_block(model, optimizer, scheduler, loader, steps: int, clip: float | None) -> float:
    """Seconds of `steps` steps of a plain loop that logs nothing."""
    model.train()
    for step, batch in zip(range(steps), loader):
        if step == UNTIMED:
            start = time.perf_counter()
        loss = model(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
    return time.perf_counter() - start


def bench(config: DictConfig, directory: Path, blocks: int, steps: int) -> list[tuple[float, float]]:
    """Seconds (bare, ours) of each pair of blocks, warm-up excluded."""
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config)
    model = BARE_MODELS[task_of(config)](config, data.info)
    optimizer = instantiate(config.optimizer)(model)
    scheduler = instantiate(config.scheduler)(optimizer, total_steps=steps * (blocks + 1) + 1, steps_per_epoch=steps)
    clip = config.trainer.gradient_clip_val

    def bare() -> float:
        return bare_block(model, optimizer, scheduler, data.train_dataloader(), steps, clip)

    def ours(number: int) -> float:
        config.paths.run_dir = str(directory / str(number))
        Path(config.paths.run_dir).mkdir()
        clock = BlockClock()
        trainer = build_trainer(config, [*build_group(config.callbacks), clock], build_group(config.logger))
        try:
            trainer.fit(build_task(config, data.info), datamodule=data)
        finally:
            finish_loggers()
        return clock.seconds

    pairs = []
    for number in range(blocks + 1):
        if number % 2:  # neither always goes first
            first = bare()
            pairs.append((first, ours(number)))
        else:
            first = ours(number)
            pairs.append((bare(), first))
    return pairs[1:]


def compose_bench(overrides: list[str], steps: int) -> DictConfig:
    """The training config, cut to one epoch of `steps` steps without validation."""
    cut = [f"+trainer.limit_train_batches={steps}", "+trainer.limit_val_batches=0", "trainer.max_epochs=1",
           "channels_last=false"]  # fmt: skip
    with config_loader(Path(__file__).resolve().parents[3] / "configs") as loader:
        return compose(loader, "train", [*cut, *overrides])[0]


BARE_MODELS = {"classification": BareClassifier, "segmentation": BareSegmenter}
BARE = {"trainer.precision": "32-true", "trainer.accumulate_grad_batches": 1, "channels_last": False, "compile": False}
BARE_TASKS = {
    "classification": {"task.mixup_alpha": 0.0, "task.cutmix_alpha": 0.0},
    "segmentation": {"task.loss.terms.cross_entropy.class_weights": None, "task.loss.weights": {"cross_entropy": 1.0}},
}


def task_of(config: DictConfig) -> str:
    name = config.task._target_.split(".")[2]  # vantage.tasks.<name>
    if name not in BARE_MODELS:
        sys.exit(f"error: the bench has no bare loop for task={name}; use one of {', '.join(BARE_MODELS)}")
    return name


def refuse(config: DictConfig) -> None:
    """Ends the bench if the bare loop would not do the same work as ours."""
    for key, value in (BARE | BARE_TASKS[task_of(config)]).items():
        given = OmegaConf.select(config, key)
        if given != value:
            sys.exit(f"error: the bare loop of the bench knows only {key}={value}, not {given}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vantage.training.bench", description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="overrides of the training config, as for train.py")
    parser.add_argument("--blocks", type=int, default=10, help="timed pairs of blocks (default 10)")
    parser.add_argument("--steps", type=int, default=19, help="steps in a block (default 19, an epoch of the digits)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = compose_bench(arguments.overrides, arguments.steps)
    refuse(config)
    load = os.getloadavg()[0]
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as directory:
        pairs = bench(config, Path(directory), arguments.blocks, arguments.steps)
    images = (arguments.steps - UNTIMED) * config.data.batch_size
    bare, ours = (statistics.median(images / pair[i] for pair in pairs) for i in (0, 1))
    ratios = [pair[0] / pair[1] for pair in pairs]
    print(f"{len(pairs)} pairs of {arguments.steps - UNTIMED} timed steps, batch {config.data.batch_size}, "
          f"{arguments.threads} threads, load before {load:.2f}, torch {torch.__version__}")  # fmt: skip
    print(f"bare loop  {bare:8.1f} images/s")
    print(f"vantage    {ours:8.1f} images/s")
    print(f"ratio      {statistics.median(ratios):8.3f}   (min {min(ratios):.3f}, max {max(ratios):.3f}; goal >= 0.95)")


if __name__ == "__main__":
    main()

"""What our training step costs over a bare PyTorch loop: python -m vantage.training.bench [overrides].

Both train the same model on the same loader with the same optimizer, schedule, loss and clipping. Ours adds the
LightningModule, progress bar, loggers and callbacks of the default config. The two are interleaved in one process,
block by block, so that a change of the machine's load hits both; the first block of each is warm-up. A block's
clock runs from the arrival of its first batch to the end of its last step, loader included, start-up excluded.

Printed: images/s of both (median over blocks), the ratio ours/bare (median over pairs of neighbouring blocks), its
range, and the load of the machine before the start: a ratio taken on busy cores means nothing.
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from vantage.training.loggers import finish_loggers


class BlockClock(pl.Callback):
    """Times one block of our own training: first batch's arrival to the end of the last step."""

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        if batch_idx == 0:
            self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, task):
        self.seconds = time.perf_counter() - self.start


def bare_block(model, optimizer, scheduler, loader, steps: int, smoothing: float, clip: float | None) -> float:
    """Seconds of `steps` steps of a plain loop that logs nothing."""
    model.train()
    start = None
    for _, batch in zip(range(steps), loader):
        if start is None:
            start = time.perf_counter()
        loss = F.cross_entropy(model(batch["image"]), batch["label"], label_smoothing=smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
    return time.perf_counter() - start


def bench(config, directory: Path, blocks: int, steps: int) -> list[tuple[float, float]]:
    """Seconds (bare, ours) of each pair of blocks, warm-up excluded."""
    from hydra.utils import instantiate

    from vantage.cli.build import build_data, build_group, build_task, build_trainer

    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config)
    steps = min(steps, len(data.train_dataloader()))
    model = build_task(config, data.info).backbone
    factory = instantiate(config.optimizer)
    optimizer = factory(model)
    scheduler = instantiate(config.scheduler)(optimizer, total_steps=steps * (blocks + 1) + 1, steps_per_epoch=steps)

    pairs = []
    for block in range(blocks + 1):
        clock = BlockClock()
        config.paths.run_dir = str(directory / str(block))
        Path(config.paths.run_dir).mkdir(parents=True)
        task = build_task(config, data.info)
        trainer = build_trainer(config, [*build_group(config.callbacks), clock], build_group(config.logger))
        order = ["bare", "ours"] if block % 2 else ["ours", "bare"]
        seconds = {}
        for which in order:
            if which == "bare":
                loader = data.train_dataloader()
                clip = config.trainer.get("gradient_clip_val")
                smoothing = config.task.get("label_smoothing", 0.0)
                seconds[which] = bare_block(model, optimizer, scheduler, loader, steps, smoothing, clip)
            else:
                trainer.fit(task, datamodule=data)
                finish_loggers()
                seconds[which] = clock.seconds
        if block:
            pairs.append((seconds["bare"], seconds["ours"]))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vantage.training.bench", description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="overrides of the training config, as for train.py")
    parser.add_argument("--blocks", type=int, default=8, help="timed pairs of blocks (default 8)")
    parser.add_argument("--steps", type=int, default=40, help="steps in a block (default 40)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    from vantage.cli.main import compose

    config = compose("train", [f"trainer.limit_train_batches={arguments.steps}", "trainer.max_epochs=1",
                               "+trainer.limit_val_batches=0", *arguments.overrides])  # fmt: skip
    load = os.getloadavg()[0]
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as directory:
        pairs = bench(config, Path(directory), arguments.blocks, arguments.steps)
    images = arguments.steps * config.data.batch_size
    bare, ours = (statistics.median(images / pair[i] for pair in pairs) for i in (0, 1))
    ratios = [pair[0] / pair[1] for pair in pairs]
    print(f"load before the start {load:.2f}, {arguments.threads} threads, batch {config.data.batch_size}, "
          f"{len(pairs)} pairs of {arguments.steps} steps, torch {torch.__version__}", file=sys.stderr)  # fmt: skip
    print(f"bare loop  {bare:8.1f} images/s")
    print(f"vantage    {ours:8.1f} images/s")
    print(f"ratio      {statistics.median(ratios):8.3f}   (min {min(ratios):.3f}, max {max(ratios):.3f}; goal >= 0.95)")


if __name__ == "__main__":
    main()

"""Runs one training: data, task, trainer, test, and the results on disk."""

import json
import logging
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import seed_everything

from vantage.cli.build import build_data, build_group, build_task, build_trainer
from vantage.cli.table import print_metrics
from vantage.training import checkpoint as checkpoints
from vantage.training.loggers import finish_loggers

logger = logging.getLogger(__name__)


def run_training(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """Trains, tests the picked checkpoint, writes metrics.json and returns what is in it.

    Loggers are closed even when the run fails: an unfinished W&B run would be handed to the next one.
    """
    try:
        metrics, is_main = fit_and_test(config, run_dir)
    finally:
        finish_loggers()
    if is_main:
        print_metrics(metrics, run_dir)
    return metrics


def fit_and_test(config: DictConfig, run_dir: Path) -> tuple[dict[str, float], bool]:
    seed_everything(config.seed, workers=True, verbose=False)
    data = build_data(config)
    task = build_task(config, data.info)
    trainer = build_trainer(config, build_group(config.callbacks), build_group(config.logger))

    for each in trainer.loggers:
        each.log_hyperparams(OmegaConf.to_container(config, resolve=True))

    started = time.perf_counter()
    trainer.fit(task, datamodule=data, ckpt_path=config.resume)
    seconds = time.perf_counter() - started

    metrics = {"time/fit_seconds": round(seconds, 2)}
    metrics.update(numbers(trainer.callback_metrics))
    for callback in trainer.callbacks:
        if isinstance(callback, checkpoints.BestAndLast) and callback.best is not None:
            metrics["best/epoch"] = callback.best_epoch + 1  # val/* are those of the last epoch, test/* of this one
            metrics[f"best/{callback.monitor}"] = callback.best
    if config.test and not trainer.fast_dev_run:
        tested = trainer.test(task, datamodule=data, ckpt_path=str(checkpoints.pick(run_dir)), verbose=False)
        if tested:
            metrics.update(numbers(tested[0]))
        else:
            logger.warning("not tested: the data has no test split (test=false says so from the start)")
    if trainer.is_global_zero:
        (run_dir / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    return metrics, trainer.is_global_zero


def numbers(metrics: dict) -> dict[str, float]:
    """Lightning's metrics as plain floats; the step-wise halves of its doubled keys are left out."""
    return {key: float(value) for key, value in metrics.items() if not key.endswith("_step")}

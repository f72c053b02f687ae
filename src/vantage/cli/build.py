"""Builds the objects a config describes; training and evaluation share it, so that both build the same thing."""

import logging
import os
from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.accelerators import CPUAccelerator

from vantage.data.info import DataInfo
from vantage.tasks.base import Task
from vantage.training import checkpoint as checkpoints

logger = logging.getLogger(__name__)


def build_data(config: DictConfig, stage: str = "fit") -> LightningDataModule:
    """The data module, its files checked and opened for fit (all splits), validate or test: `.info` is set."""
    data = instantiate(config.data)
    data.prepare_data()
    data.setup(stage)
    return data


def build_backbone(config: DictConfig) -> partial:
    """The backbone's factory; the task calls it with what it knows of the data (classes, channels, image size)."""
    return instantiate(config.model)


def build_task(config: DictConfig, info: DataInfo) -> Task:
    """The task with its model, weights freshly initialised from the global seed."""
    # given to the partial, not to instantiate, which would turn the dataclass `info` into a config node
    task = instantiate(config.task, _partial_=True)(
        backbone=build_backbone(config),
        data=info,
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
        channels_last=config.channels_last,
        compile=config.compile,
    )
    task.config_text = OmegaConf.to_yaml(config, resolve=True)
    return task


def build_group(nodes: DictConfig | None) -> list:
    """What a group of named nodes (callbacks, logger) describes, in order; a null node switches its entry off."""
    return [instantiate(node) for node in (nodes or {}).values() if node]


def build_trainer(config: DictConfig, callbacks: list, loggers: list) -> Trainer:
    trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers or False)
    several = isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > 1
    if several and "OMP_NUM_THREADS" not in os.environ:
        # processes with as many threads each as the machine has cores would fight for them
        torch.set_num_threads(max(1, torch.get_num_threads() // trainer.num_devices))
    return trainer


def load_run(run: str | None = None, checkpoint: str | None = None) -> tuple[DictConfig, Path]:
    """The config a run was trained with and its checkpoint: `run` picks best, else last; `checkpoint` names one."""
    path = checkpoints.pick(run) if run else Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint={checkpoint} is not a file; give a .ckpt file, or run=RUN_DIR")
    if run and (Path(run) / "config.yaml").is_file():
        return OmegaConf.load(Path(run) / "config.yaml"), path
    stored = torch.load(path, map_location="cpu", weights_only=True).get("vantage")
    if not stored:
        raise ValueError(f"{path} holds no Vantage config; only checkpoints written by train.py can be rebuilt")
    return OmegaConf.create(stored["config"]), path

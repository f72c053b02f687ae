"""The YAML of the training groups builds what it names, and repeats no default that disagrees with the signature."""

import inspect
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import EarlyStopping

from vantage.training.checkpoint import BestAndLast
from vantage.training.ema import EMA
from vantage.training.nan_guard import NaNGuard
from vantage.training.progress import ProgressReport

from .stubs import TinyData, fit, make_task, sgd

CONFIGS = Path(__file__).parents[2] / "configs"
CHOICES = {  # where the recipe's choice is not the signature's default
    "scheduler/cosine": {"warmup_fraction"},
    "scheduler/poly": {"warmup_fraction"},
    "task/segmentation": {"auxiliary", "width"},
}


def load(name, tmp_path):
    root = {"paths": {"run_dir": str(tmp_path)}, "name": None, "group": None, "tags": []}
    root["node"] = OmegaConf.load(CONFIGS / f"{name}.yaml")
    return OmegaConf.create(root).node


def nodes(tree):
    if OmegaConf.is_dict(tree):
        if "_target_" in tree:
            yield tree
        for value in tree.values():
            yield from nodes(value)


GROUPS = ("task", "optimizer", "scheduler", "callbacks", "logger")
FILES = sorted(f"{group}/{path.stem}" for group in GROUPS for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_yaml_and_signature_agree(name, tmp_path):
    for node in nodes(load(name, tmp_path)):
        if not node["_target_"].startswith("vantage."):
            continue
        parameters = inspect.signature(get_class(node["_target_"])).parameters
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        keys = {key for key in node if not key.startswith("_") and key != "defaults"}
        assert keys <= parameters.keys()
        for key in keys - CHOICES.get(name, set()):
            default = parameters[key].default
            if default is not inspect.Parameter.empty and not OmegaConf.is_interpolation(node, key):
                assert node[key] == default, f"{name}: {key}"


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("scheduler", ["one_cycle", "cosine", "poly", "multi_step", "constant"])
def test_every_optimizer_trains_under_every_schedule(optimizer, scheduler, tmp_path):
    factory = instantiate(load(f"optimizer/{optimizer}", tmp_path))
    schedule = instantiate(load(f"scheduler/{scheduler}", tmp_path))
    torch.manual_seed(0)
    task = make_task(optimizer=factory, scheduler=schedule)
    before = task.backbone.conv.weight.detach().clone()
    trainer, _ = fit(tmp_path, task=task, trainer={"max_epochs": 1})
    assert (task.backbone.conv.weight - before).abs().max() > 1e-4
    assert type(trainer.optimizers[0]).__name__.lower() == optimizer


def test_the_callbacks_are_what_their_files_say(tmp_path):
    default = {key: instantiate(node) for key, node in load("callbacks/default", tmp_path).items()}
    kinds = {type(callback) for callback in default.values()}
    assert {BestAndLast, NaNGuard, ProgressReport} <= kinds
    assert default["checkpoint"].folder == tmp_path / "checkpoints"
    ema = instantiate(load("callbacks/ema", tmp_path).ema)
    assert isinstance(ema, EMA)
    assert ema.decay == 0.999


def test_early_stopping_stops(tmp_path):
    node = load("callbacks/early_stopping", tmp_path).early_stopping
    node.patience = 2
    stopping = instantiate(node)
    assert isinstance(stopping, EarlyStopping)
    trainer, _ = fit(tmp_path, optimizer=sgd(1e-12), callbacks=[stopping], data=TinyData(), trainer={"max_epochs": 20})
    assert trainer.current_epoch == 3  # one to be best, two without improvement
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()

"""The YAML of the task: every detector composes, passes the check, trains on every family, and its defaults agree."""

import inspect
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from vantage.backbones.adapters import ADAPTERS
from vantage.cli import compose
from vantage.cli.build import build_task
from vantage.cli.check import check
from vantage.cli.errors import ConfigError
from vantage.data.info import DataInfo

CONFIGS = Path(__file__).parents[3] / "configs"
DETECTORS = sorted(path.stem for path in (CONFIGS / "task" / "detector").glob("*.yaml"))
SMALL = {"strides", "width", "num_convs", "proposals", "head_width", "head_samples"}  # smaller than as published
INFO = DataInfo(3, ["a", "b", "c"], 3, (64, 96), [0.5] * 3, [0.25] * 3)


@pytest.fixture(scope="module")
def loader():
    compose.register_resolvers()
    with compose.config_loader(CONFIGS) as loader:
        yield loader


def composed(loader, *overrides):
    cfg, sources = compose.compose(loader, "train", ["task=rotated_detection", *overrides])
    check(cfg, sources, "train")
    return cfg


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_repeats_no_default_that_disagrees_with_its_signature(name):
    node = OmegaConf.to_container(OmegaConf.load(CONFIGS / "task" / "detector" / f"{name}.yaml"))
    parameters = inspect.signature(get_class(node.pop("_target_"))).parameters
    assert node.pop("_partial_")
    assert set(node) == set(parameters) - {"channels", "backbone_strides", "num_classes"}
    for key in node.keys() - SMALL:
        default = parameters[key].default
        assert node[key] == pytest.approx(list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("family", list(ADAPTERS))
def test_every_detector_trains_over_every_backbone(loader, name, family):
    attention = [] if family != "resnet" else ["attention=native"]
    cfg = composed(loader, f"task/detector={name}", f"model={family}", *attention)
    torch.manual_seed(0)
    task = build_task(cfg, INFO)
    batch = [
        {
            "image": torch.randn(3, 64, 96),
            "boxes": torch.tensor([[30.0, 30, 30, 12, 0.4], [70, 40, 20, 9, -1.0]]),
            "labels": torch.tensor([0, 2]),
            "difficult": torch.tensor([False, False]),
        },
        {
            "image": torch.randn(3, 64, 96),
            "boxes": torch.zeros(0, 5),
            "labels": torch.zeros(0, dtype=torch.int64),
            "difficult": torch.zeros(0, dtype=torch.bool),
        },
    ]
    loss = task.training_step(batch, 0)["loss"]
    loss.backward()
    assert loss.isfinite()
    unused = [key for key, parameter in task.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not unused, f"distributed training would stop: no gradient for {unused}"
    assert len(task.eval()(torch.randn(2, 3, 50, 75))) == 2  # sizes that no stride divides


def test_a_typo_below_the_detector_is_found(loader):
    for override, sentence in {
        "+task.detector.box_los=kld": "did you mean 'task.detector.box_loss'?",
        "task.detector.box_loss=giou": "must be one of 'rotated_iou', 'gwd', 'kld', 'kfiou', 'probiou', 'smooth_l1'",
        "task.detector.strides=8": "'task.detector.strides' (command line: task.detector.strides=8) is 8",
        "task.test_views=turns": "must be one of 'none', 'flips', 'rotations', 'flips_rotations'",
    }.items():
        with pytest.raises(ConfigError) as caught:
            composed(loader, override)
        assert sentence in str(caught.value)

"""The YAML of the task: every decoder trains over every family, typos are found, and defaults agree with signatures."""

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
from vantage.tasks.segmentation.auxiliary import AuxiliaryHead
from vantage.tasks.segmentation.module import Segmentation

CONFIGS = Path(__file__).parents[3] / "configs"
DECODERS = sorted(path.stem for path in (CONFIGS / "task" / "decoder").glob("*.yaml"))
OF_ANOTHER_TASK = {"l1", "charbonnier", "fft"}
LOSSES = sorted({path.stem for path in (CONFIGS / "task" / "loss").glob("*.yaml")} - OF_ANOTHER_TASK)
INFO = DataInfo(3, ["a", "b", "c"], 3, (64, 96), [0.5] * 3, [0.25] * 3)


@pytest.fixture(scope="module")
def loader():
    compose.register_resolvers()
    with compose.config_loader(CONFIGS) as loader:
        yield loader


def composed(loader, *overrides):
    cfg, sources = compose.compose(loader, "train", ["task=segmentation", *overrides])
    check(cfg, sources, "train")
    return cfg


def batch(count=2):
    torch.manual_seed(0)
    masks = torch.randint(0, 3, (count, 4, 6)).repeat_interleave(16, 1).repeat_interleave(16, 2).to(torch.uint8)
    masks[:, :5] = 255
    return [{"image": torch.randn(3, 64, 96), "mask": mask, "name": str(i)} for i, mask in enumerate(masks)]


def test_the_task_repeats_no_default_that_disagrees_with_its_signature():
    node = OmegaConf.to_container(OmegaConf.load(CONFIGS / "task" / "segmentation.yaml"))
    parameters = inspect.signature(Segmentation).parameters
    given = {"backbone", "data", "optimizer", "scheduler", "channels_last", "compile", "decoder", "loss", "auxiliary"}
    assert set(node) - {"defaults", "_target_", "auxiliary"} == set(parameters) - given
    for key in set(parameters) - given:
        default = parameters[key].default
        assert node[key] == pytest.approx(list(default) if isinstance(default, tuple) else default), key
    head, signature = node["auxiliary"], inspect.signature(AuxiliaryHead).parameters
    assert set(head) - {"_target_", "_partial_"} == set(signature) - {"channels", "backbone_strides", "num_classes"}
    assert {key: head[key] for key in ("level", "num_convs", "dropout")} == {
        key: signature[key].default for key in ("level", "num_convs", "dropout")
    }


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_spells_out_every_keyword(name):
    node = OmegaConf.to_container(OmegaConf.load(CONFIGS / "task" / "decoder" / f"{name}.yaml"))
    parameters = inspect.signature(get_class(node.pop("_target_"))).parameters
    assert node.pop("_partial_")
    assert set(node) == set(parameters) - {"channels", "backbone_strides", "num_classes"}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("family", list(ADAPTERS))
def test_every_decoder_trains_over_every_backbone(loader, name, family):
    attention = [] if family != "resnet" else ["attention=native"]
    cfg = composed(loader, f"task/decoder={name}", f"model={family}", "task.auxiliary_weight=0.4", *attention)
    torch.manual_seed(0)
    task = build_task(cfg, INFO)
    loss = task.training_step(batch(), 0)["loss"]
    loss.backward()
    assert loss.isfinite()
    unused = [key for key, parameter in task.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not unused, f"distributed training would stop: no gradient for {unused}"
    scores = task.eval()(torch.randn(2, 3, 50, 75))  # sizes that no stride divides
    assert scores.shape[:2] == (2, 3)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_and_an_ignored_batch_gives_no_nan(loader, name):
    torch.manual_seed(0)
    task = build_task(composed(loader, f"task/loss={name}", "model=resnet", "attention=native"), INFO)
    samples = batch()
    assert task.training_step(samples, 0)["loss"] > 0
    for sample in samples:
        sample["mask"].fill_(255)
    loss = task.training_step(samples, 0)["loss"]
    loss.backward()
    assert loss.item() == 0
    gradients = [parameter.grad for parameter in task.parameters() if parameter.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def test_losses_combine_on_the_command_line(loader):
    losses = "task/loss=[cross_entropy,dice,boundary]"
    cfg = composed(loader, losses, "task.loss.weights.dice=2", "task.auxiliary_weight=0.4")
    assert set(cfg.task.loss.terms) == {"cross_entropy", "dice", "boundary"}
    task = build_task(cfg, INFO)
    task.training_step(batch(), 0)
    assert {"loss_cross_entropy", "loss_dice", "loss_boundary", "loss_auxiliary_dice"} <= set(task.meter.means())


def test_a_typo_below_the_decoder_is_found(loader):
    for override, sentence in {
        "+task.decoder.pyramid_widht=8": "did you mean 'task.decoder.pyramid_width'?",
        "task.inference=sliding": "must be one of 'whole', 'slide'",
        "task.surface=on": "must be one of 'never', 'test', 'always'",
        "task.tile=small": "'task.tile' (command line: task.tile=small) is 'small'; it must be",
        "+task.loss.terms.cross_entropy.smoothing=0.1": "takes no 'smoothing'",
        "data=digits": "data=digits cannot feed task=segmentation",
    }.items():
        with pytest.raises(ConfigError) as caught:
            composed(loader, override)
        assert sentence in str(caught.value), override

"""The attention that the README writes as an example works as the README says."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch.utils.flop_counter import FlopCounterMode

from vantage.backbones.build import build_backbone

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The yaml of the README, its module made importable as it would be in src/vantage/attention."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (config,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    import vantage.attention

    (tmp_path / "mean.py").write_text(code)
    monkeypatch.setattr(vantage.attention, "__path__", [*vantage.attention.__path__, str(tmp_path)])
    yield instantiate(yaml.safe_load(config))
    sys.modules.pop("vantage.attention.mean", None)


def test_the_example_is_the_mean_it_claims(example):
    module = example(8, 2).double()
    x = torch.randn(2, 3, 5, 8, dtype=torch.double)
    with FlopCounterMode(display=False) as counter:
        out = module(x)
    expected = x.flatten(1, 2).mean(1) @ module.proj.weight.T + module.proj.bias
    torch.testing.assert_close(out, expected[:, None, None].expand_as(x))
    assert counter.get_total_flops() == 2 * module.flops(3, 5)  # two images


def test_the_example_fills_the_slots_of_a_backbone(example):
    backbone = build_backbone("maxvit", "maxvit_pico32", attention=example, num_classes=3)
    assert backbone(torch.randn(2, 3, 33, 47)).shape == (2, 3)
    assert {type(attention).__name__ for _, attention in backbone.installed()} == {"Mean"}

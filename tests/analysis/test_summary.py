"""The summary's numbers against timm, and its rows against the backbone."""

import io

import pytest
import timm
import torch
from rich.console import Console

from vantage.analysis.summary import parameters_by_part, pattern, slots_table, summary
from vantage.backbones.build import build_backbone


def printed(renderable, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("maxvit_nano_rw_256", ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "norm", "head"]),
        ("vit_tiny_patch16_224", ["cls_token", "pos_embed", "patch_embed", "blocks", "norm", "head"]),
        ("resnet18", ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]),
    ],
)
def test_parameters_of_the_parts_add_up(name, parts):
    net = timm.create_model(name)
    sizes = parameters_by_part(net)
    assert list(sizes) == parts
    assert sum(sizes.values()) == sum(parameter.numel() for parameter in net.parameters())
    for part, size in sizes.items():
        module = dict(net.named_modules()).get(part)
        if module is not None:
            assert size == sum(parameter.numel() for parameter in module.parameters())


def test_alike_slots_share_a_row_and_native_ones_say_so():
    backbone = build_backbone("swin", "swin_tiny_patch4_window7_224", img_size=224)
    text = printed(slots_table(backbone))
    rows = [line for line in text.splitlines() if "native" in line]
    assert len(rows) == 8  # six blocks of stage 2 are three plain and three shifted ones
    assert sum("layers.2.blocks.*.attn ×3" in row for row in rows) == 2
    assert rows[0].split() == ["layers.0.blocks.0.attn", "local", "native", "0", "96", "3", "4"]


def test_patterns():
    assert pattern(["a.0.b"]) == "a.0.b"
    assert pattern(["a.0.b.1", "a.0.b.2"]) == "a.0.b.* ×2"


def test_it_fits_a_log_of_80_columns_and_leaves_the_model_alone():
    backbone = build_backbone("maxvit", "maxvit_pico32", img_size=32, num_classes=10).train()
    state = torch.get_rng_state()
    buffers = [buffer.clone() for buffer in backbone.buffers()]
    text = printed(summary(backbone, torch.zeros(1, 3, 32, 32)), width=80)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(buffers, backbone.buffers()))
    assert backbone.training
    assert f"{sum(parameter.numel() for parameter in backbone.parameters()):,}" in text
    assert "per 3×32×32 image" in text
    for slot in backbone.slots():
        assert slot.name in text

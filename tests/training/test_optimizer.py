"""Groups are tested for what a step does to the weights, and against timm's own layer decay."""

from functools import partial

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from vantage.position.base import Position
from vantage.training.optimizer import OptimizerFactory, layer_ids, no_decay_names, parameter_groups

from .stubs import OneCycle, adamw


class Table(Position):
    hook = "bias"

    def __init__(self):
        super().__init__(4, 2)
        self.table = nn.Parameter(torch.ones(2, 9))


class Mixer(nn.Module):
    no_decay = ("anchors",)

    def __init__(self):
        super().__init__()
        self.anchors = nn.Parameter(torch.ones(3, 4))
        self.qkv = nn.Linear(4, 12)
        self.norm = nn.LayerNorm(4)
        self.position = Table()


def ones(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    return model


def test_a_step_without_gradient_shrinks_what_decays_and_nothing_else():
    model = ones(Mixer())
    adamw(lr=0.1, weight_decay=0.5)(model).step()
    moved = {name for name, parameter in model.named_parameters() if not torch.all(parameter == 1)}
    assert moved == {"qkv.weight"}
    torch.testing.assert_close(model.qkv.weight, torch.full((12, 4), 1 - 0.1 * 0.5))


def test_names_that_timm_exempts_do_not_decay():
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    exempt = no_decay_names(nn.Sequential(model))
    assert {"0.pos_embed", "0.cls_token", "0.blocks.0.norm1.weight", "0.head.bias"} <= exempt
    assert "0.blocks.0.attn.qkv.weight" not in exempt


def test_a_declared_name_that_is_no_parameter_is_refused():
    model = Mixer()
    model.no_decay = ("anchor",)
    with pytest.raises(ValueError, match=r"Mixer.no_decay names 'anchor'.*anchors"):
        no_decay_names(model)


MODELS = [
    ("vit_tiny_patch16_224", {"depth": 3, "img_size": 32}),
    ("maxvit_rmlp_pico_rw_256", {}),
    ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 2, 1), "embed_dim": 24}),
    ("pvt_v2_b0", {}),
    ("resnet18", {}),
]


@pytest.mark.parametrize(("name", "options"), MODELS, ids=[name for name, _ in MODELS])
def test_layer_decay_equals_timms_for_every_parameter(name, options):
    model = timm.create_model(name, num_classes=5, **options)
    scales = {id(p): g["lr_scale"] for g in param_groups_layer_decay(model, layer_decay=0.7) for p in g["params"]}
    groups = parameter_groups(nn.ModuleDict({"net": model}), lr=0.01, weight_decay=0.1, layer_decay=0.7)
    ours = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert ours.keys() == scales.keys()
    assert all(ours[key] == pytest.approx(0.01 * scale) for key, scale in scales.items())
    assert len(set(ours.values())) > 2


def test_layer_decay_scales_the_updates_and_survives_the_schedule():
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    factory = OptimizerFactory(lr=1.0, weight_decay=0.0, layer_decay=0.5, optimizer=torch.optim.SGD)
    optimizer = factory(model)
    scheduler = OneCycle()(optimizer, 10, 5)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        scheduler.step()
    ids = layer_ids(model)
    last = max(ids.values())
    step = {name: (before[name] - parameter).mean().item() for name, parameter in model.named_parameters()}
    head = step["head.weight"]
    assert head > 0
    for name, value in step.items():
        assert value == pytest.approx(head * 0.5 ** (last - ids[name]), rel=1e-3), name
    assert ids["blocks.0.attn.qkv.weight"] < ids["blocks.1.attn.qkv.weight"] < ids["head.weight"]


def test_a_head_outside_the_timm_model_is_as_deep_as_its_last_layer():
    net = timm.create_model("resnet18", num_classes=0)
    model = nn.ModuleDict({"net": net, "head": nn.Linear(512, 3)})
    ids = layer_ids(model)
    assert ids["head.weight"] == max(ids.values()) > ids["net.conv1.weight"] == 0


def test_a_head_can_learn_faster_than_its_backbone():
    model = nn.ModuleDict({"net": timm.create_model("resnet18", num_classes=0), "head": nn.Linear(512, 3)})
    for decay in (1.0, 0.5):
        plain = parameter_groups(model, lr=0.1, weight_decay=0.0, layer_decay=decay)
        scaled = parameter_groups(model, lr=0.1, weight_decay=0.0, layer_decay=decay, head_scale=10.0)
        before, after = (
            {id(p): group["lr"] for group in groups for p in group["params"]} for groups in (plain, scaled)
        )
        head = {id(parameter) for parameter in model["head"].parameters()}
        assert before.keys() == after.keys()
        assert all(after[key] == pytest.approx(before[key] * (10 if key in head else 1)) for key in before)
    with pytest.raises(ValueError, match=r"optimizer.head_scale needs a head beside a timm backbone"):
        parameter_groups(nn.ModuleDict({"net": model["net"]}), lr=0.1, weight_decay=0.0, head_scale=10.0)


def test_frozen_parameters_are_left_out_and_do_not_change_the_others():
    model = timm.create_model("resnet18", num_classes=3)
    groups = parameter_groups(model, lr=1.0, weight_decay=0.0, layer_decay=0.5)
    free = {id(p): group["lr"] for group in groups for p in group["params"]}
    frozen = [*model.conv1.parameters(), *model.fc.parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    groups = parameter_groups(model, lr=1.0, weight_decay=0.0, layer_decay=0.5)
    left = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert not left.keys() & {id(parameter) for parameter in frozen}
    assert all(free[key] == lr for key, lr in left.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, "optimizer.lr is 0.0"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay is -1.0"),
        ({"layer_decay": 1.5}, "optimizer.layer_decay is 1.5"),
        ({"head_scale": 0.0}, "optimizer.head_scale is 0.0"),
    ],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        adamw(**options)


def test_a_learning_rate_inside_the_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"optimizer.optimizer.lr would be overwritten.*set optimizer.lr"):
        OptimizerFactory(lr=0.1, weight_decay=0.0, optimizer=partial(torch.optim.SGD, lr=0.2))


def test_layer_decay_without_a_timm_model_is_refused():
    with pytest.raises(ValueError, match=r"use optimizer.layer_decay=1"):
        adamw(layer_decay=0.9)(nn.Linear(2, 2))


def test_a_model_frozen_whole_is_refused():
    with pytest.raises(ValueError, match="no trainable parameter"):
        adamw()(nn.Linear(2, 2).requires_grad_(False))

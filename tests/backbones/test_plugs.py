"""Plugs in a backbone: where they go, that they train at any size, and who takes none."""

from functools import partial

import pytest
import torch
from torch import nn

from vantage.backbones.build import build_backbone
from vantage.plugs.adaptive_rotated_conv import AdaptiveRotatedConv

from .families import gradients, images, small, softmax

ARC = partial(AdaptiveRotatedConv, num_kernels=2)


def plugged(model):
    return [name for name, module in model.net.named_modules() if isinstance(module, AdaptiveRotatedConv)]


def test_arc_replaces_every_3x3_convolution_of_stages_2_to_4():
    model = build_backbone("resnet", "resnet50", plug=ARC)
    assert len(plugged(model)) == 4 + 6 + 3
    assert all(name.endswith("conv2") and name[:6] in ("layer2", "layer3", "layer4") for name in plugged(model))
    assert model.net.layer2[0].conv2.stride == (2, 2)
    left = [name for name, one in model.net.named_modules() if type(one) is nn.Conv2d and one.kernel_size == (3, 3)]
    assert all(name.startswith("layer1") or name.endswith("depthwise") for name in left)
    assert set(model.report.kept) | set(model.report.new) == set(model.net.state_dict())
    assert not set(model.report.kept) & set(model.report.new)


def test_the_places_of_an_attention_stay_its_own():
    model = small("resnet", softmax, plug=ARC)
    assert not {slot.name for slot, _ in model.installed()} & set(plugged(model))
    assert model.report.swapped
    assert plugged(model)


@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_a_plugged_backbone_trains_at_any_size(size):
    model = small("resnet", plug=ARC).train()
    found = gradients(model, images(size))
    names = {name for name, _ in model.named_parameters()}
    assert names <= found.keys()
    assert all(gradient.isfinite().all() for gradient in found.values())
    maps = model.features(images(size))
    assert [tuple(one.shape[-2:]) for one in maps] == [
        tuple(-(-side // stride) for side in size) for stride in model.strides
    ]


def test_other_families_take_no_plug():
    with pytest.raises(
        ValueError, match=r"plug=adaptive_rotated_conv finds no place in model=swin; use model=resnet or plug=none"
    ):
        small("swin", plug=ARC)
    with pytest.raises(ValueError, match=r"finds no place in model.variant=resnext50_32x4d"):
        build_backbone("resnet", "resnext50_32x4d", plug=ARC)


def test_checkpointing_keeps_what_plugs_compute():
    x = images((32, 64))
    plain, checkpointed = (
        gradients(small("resnet", plug=ARC, grad_checkpointing=given).train(), x) for given in (False, True)
    )
    torch.testing.assert_close(plain, checkpointed, rtol=1e-4, atol=1e-5)

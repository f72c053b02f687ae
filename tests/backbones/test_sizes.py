"""Every family takes any image of 32 pixels or more, swapped or not, and gives maps of the size its strides say."""

import copy
import pickle
from functools import partial

import pytest
import timm
import torch

from vantage.attention.neighborhood import Neighborhood
from vantage.backbones.build import build_backbone

from .families import FAMILIES, SIZES, each_family, images, small, softmax

ATTENTIONS = {"native": None, "softmax": softmax, "neighborhood": partial(Neighborhood)}
OTHERS = [
    ("maxvit", "maxvit_rmlp_pico_rw_256"),  # its convolution shortcut rounds down in timm
    *([("maxvit", "test_maxvit")] if timm.is_model("test_maxvit") else []),  # not in timm 1.0.22
    ("vit", "test_vit"),
    ("vit", "test_vit2"),
    ("swin", "swin_nano32"),
    ("resnet", "resnetaa34d"),
    ("resnet", "test_resnet"),
    ("resnet", "resnet_nano32"),
    ("pvt_v2", "pvt_v2_b0"),
]


@each_family
@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_trains(family, name, size):
    model = small(family, ATTENTIONS[name], img_size=size)
    check_maps(model, size)
    out = model.train()(images(size))
    out.square().sum().backward()
    assert out.shape == (2, 5)
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize(("family", "variant"), OTHERS)
@pytest.mark.parametrize("attention", [None, softmax], ids=["native", "softmax"])
def test_other_variants(family, variant, attention):
    model = build_backbone(family, variant, attention=attention, num_classes=3)
    for size in SIZES:
        check_maps(model, size)
        assert model(images(size)).shape == (2, 3)


def check_maps(model, size):
    maps = model.eval().features(images(size))
    assert len(maps) == len(model.channels) == len(model.strides)
    for found, channels, stride in zip(maps, model.channels, model.strides, strict=True):
        assert found.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
        assert torch.isfinite(found).all()


@each_family
@pytest.mark.parametrize("attention", [None, softmax], ids=["native", "softmax"])
def test_maps_are_those_of_the_logits(family, attention):
    """The last map, pooled, is what the head sees: features and logits come from one computation."""
    model = small(family, attention, num_classes=0).eval()
    x = images((36, 44))
    pooled = model(x)
    assert pooled.shape == (2, model.num_features)
    last = model.features(x)[-1].mean((2, 3))
    if family == "davit":  # it normalises after pooling
        last = model.net.head.norm(last[..., None, None]).flatten(1)
    if family == "vit":  # its map is normalised token by token, its logits after pooling
        tokens = model.net.forward_features(x)[:, model.net.num_prefix_tokens :]
        torch.testing.assert_close(model.features(x)[-1].flatten(2).mT, model.net.fc_norm(tokens))
        last = model.net.fc_norm(tokens.mean(1))
    torch.testing.assert_close(last, pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("variant", "strides"), [("maxvit_tiny_tf_224", [4, 8, 16, 32]), ("resnet18", [4, 8, 16, 32])])
def test_strides_of_timm(variant, strides):
    assert build_backbone("maxvit" if "maxvit" in variant else "resnet", variant).strides == strides


@each_family
@pytest.mark.parametrize("name", ["native", "neighborhood"])
def test_copies_pickles_exports(family, name):
    model = small(family, ATTENTIONS[name]).eval()
    x = images((32, 40))
    with torch.no_grad():
        expected = model(x)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
            assert [slot for slot, _ in twin.installed()] == [slot for slot, _ in model.installed()]
            assert twin.report == model.report
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_compiles(family):
    torch._dynamo.reset()
    model = small(family, softmax).train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = images((32, 36))
    torch.testing.assert_close(compiled(x), copy.deepcopy(model)(x), rtol=1e-4, atol=1e-5)

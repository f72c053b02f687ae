"""What a backbone does in training: checkpointing, stochastic depth, channels, and the tokens of a swapped ViT."""

import logging
from functools import partial

import pytest
import torch
from timm.layers import DropPath

from vantage.attention.softmax import Softmax
from vantage.backbones.build import build_backbone

from .families import each_family, gradients, images, small, softmax


@each_family
@pytest.mark.parametrize("attention", [None, softmax], ids=["native", "softmax"])
def test_checkpointing_has_the_same_gradients(family, attention):
    x = images((32, 64))
    plain = gradients(small(family, attention).train(), x)
    model = small(family, attention, grad_checkpointing=True).train()
    runs = []
    first = model.net.get_submodule(model.report.swapped[0] if attention else model.slots()[0].name)
    first.register_forward_hook(lambda *_: runs.append(1))
    checkpointed = gradients(model, x)
    assert len(runs) == 2  # forward, and again in backward
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, rtol=1e-5, atol=1e-6)


@each_family
def test_drop_path_and_channels(family):
    model = small(family, softmax, drop_path=0.3, in_chans=1)
    assert max(module.drop_prob for module in model.modules() if isinstance(module, DropPath)) == pytest.approx(0.3)
    if family == "resnet":  # its residual branches start at zero
        for block in model.net.layer4:
            torch.nn.init.ones_(block.bn2.weight)
    x = images(channels=1, batch=8)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    assert not any(isinstance(module, DropPath) for module in small(family).modules())
    assert small(family, in_chans=None)(images()).shape == (2, 5)  # null in a config: three


def test_swapped_vit_drops_the_class_token(caplog):
    with caplog.at_level(logging.INFO, logger="vantage"):
        model = build_backbone("vit", "test_vit", attention=partial(Softmax), num_classes=5, img_size=64)
    assert "class token is dropped" in caplog.text
    assert "cls_token" in model.report.dropped
    assert model.net.pos_embed.shape == (1, 16, 64)
    native = build_backbone("vit", "test_vit", num_classes=5, img_size=64)
    model = build_backbone("vit", "test_vit", attention=partial(Softmax), num_classes=5, img_size=64)
    net = native.net.eval()
    model.net.load_state_dict(
        {key: value for key, value in net.state_dict().items() if key != "cls_token"}
        | {"pos_embed": net.pos_embed[:, 1:]}
    )
    # timm's own blocks, run without the class token, and its norm and head on the mean of the patches
    x = images((64, 64))
    tokens = net.patch_embed(x).flatten(1, 2) + net.pos_embed[:, 1:]
    expected = net.head(net.norm(net.blocks(tokens)).mean(1))
    torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-5)


def test_a_partly_swapped_vit_has_no_class_token_either():
    model = build_backbone("vit", "test_vit", attention=partial(Softmax), slots=["blocks.[0-2].attn"], num_classes=5)
    assert len(model.report.native) == 3
    assert model.net.cls_token is None
    assert model(images((40, 64))).shape == (2, 5)


@pytest.mark.parametrize("variant", ["test_vit2", "test_vit3"])
def test_register_tokens_bypass_the_mixer(variant):
    """What the patches give does not depend on the registers; the registers see their MLP only."""
    model = build_backbone("vit", variant, attention=partial(Softmax), num_classes=5, img_size=64).eval()
    net = model.net
    assert net.reg_token.shape[1] == 1
    for block in net.blocks:  # layer scale starts at 1e-5
        block.ls1.gamma.data.fill_(0.5)
        block.ls2.gamma.data.fill_(0.5)
    x = images((64, 64))
    before = net.forward_features(x)
    register = net.reg_token.data.clone()
    net.reg_token.data.normal_()
    after = net.forward_features(x)
    torch.testing.assert_close(after[:, 1:], before[:, 1:])
    assert (after[:, 0] - before[:, 0]).abs().max() > 1e-3
    net.reg_token.data.copy_(register)
    token = net._pos_embed(net.patch_embed(x))[:, :1]
    for block in net.blocks:
        token = token + block.ls2(block.mlp(block.norm2(token)))
    torch.testing.assert_close(net.norm(token), before[:, :1])


def test_vit_positions_follow_the_image():
    model = small("vit", softmax, img_size=(32, 48)).eval()
    assert model.net.patch_embed.grid_size == (8, 12)
    assert model.features(images((50, 30)))[0].shape == (2, 64, 13, 8)

"""HAN against its equations written out here, the release's names, and its published count."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from vantage.backbones.sr.han import HAN, VARIANTS

from .test_edsr import MEAN, assert_same_with_gradients, convolve, enlarge

PUBLISHED = 16_071_769  # at x4, with the release's two colour shifts
GAMMAS = ("csa.gamma", "la.gamma")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(scale=2, **keywords):
    return HAN(scale=scale, **{"dim": 6, "num_groups": 2, "num_blocks": 2, "reduction": 2} | keywords)


def opened(net):
    """Both attentions at work."""
    for name in GAMMAS:
        torch.nn.init.constant_(net.get_parameter(name), 0.7)
    return net


# the equations


def residual_block(weights, name, x):
    inner = convolve(weights, f"{name}.body.2", convolve(weights, f"{name}.body.0", x).clamp(min=0))
    hidden = convolve(weights, f"{name}.body.3.conv_du.0", inner.flatten(2).mean(-1)[..., None, None]).clamp(min=0)
    logits = convolve(weights, f"{name}.body.3.conv_du.2", hidden)
    return x + inner / (1 + torch.exp(-logits))


def layer_attention(layers, gamma, scaled):
    mixed = []
    for own in layers:
        energies = torch.stack([(own * other).sum((1, 2, 3)) for other in layers])  # (N, B)
        if scaled:
            energies = energies / own[0].numel()
        powers = torch.exp(energies.min(0).values - energies)
        shares = powers / powers.sum(0)
        mixed.append(own + gamma * sum(s[:, None, None, None] * other for s, other in zip(shares, layers)))
    return mixed


def written_out(weights, x, scale, groups, blocks, scaled):
    shallow = deep = convolve(weights, "head.0", 255 * x)
    layers = []
    for group in range(groups):
        inner = deep
        for block in range(blocks):
            inner = residual_block(weights, f"body.{group}.body.{block}", inner)
        deep = deep + convolve(weights, f"body.{group}.body.{blocks}", inner)
        layers.insert(0, deep)
    deep = convolve(weights, f"body.{groups}", deep)
    layers.insert(0, deep)
    mixed = torch.cat(layer_attention(layers, weights["la.gamma"], scaled), 1)
    volume = F.conv3d(deep[:, None], weights["csa.conv.weight"], weights["csa.conv.bias"], padding=1)[:, 0]
    gated = deep + weights["csa.gamma"] * deep / (1 + torch.exp(-volume))
    deep = convolve(weights, "last", torch.cat([gated, convolve(weights, "last_conv", mixed)], 1))
    return enlarge(weights, shallow + deep, scale) / 255


def small_image(*size):
    """Of a contrast at which no layer takes all the weight."""
    return 0.005 * torch.randn(2, 3, *size, dtype=torch.float64)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("scale", "size"), [(2, (5, 3)), (3, (1, 1)), (4, (1, 4)), (8, (3, 2))])
def test_equals_the_equations(scale, size, scaled):
    net = opened(build(scale, lam_scaled=scaled)).double()
    x = small_image(*size)
    assert net(x).shape == (2, 3, scale * size[0], scale * size[1])
    assert_same_with_gradients(net, lambda weights, x: written_out(weights, x, scale, 2, 2, scaled), x)


def test_starts_without_layer_and_place_attention():
    net, x = build().double(), small_image(5, 4)
    start = net(x)
    torch.nn.init.normal_(net.csa.conv.weight)
    net.la.scaled = True
    assert torch.equal(net(x), start)
    assert not torch.allclose(opened(net)(x), start)


# the release


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_parameter_counts(scale):
    def conv(inputs, outputs, taps=9):
        return outputs * (taps * inputs + 1)

    block = 2 * conv(64, 64) + conv(64, 4, 1) + conv(4, 64, 1)
    body = 10 * (20 * block + conv(64, 64)) + conv(64, 64)
    fusion = (27 + 1 + 1) + 1 + conv(11 * 64, 64) + conv(2 * 64, 64)
    up = {2: conv(64, 256), 3: conv(64, 576), 4: 2 * conv(64, 256), 8: 3 * conv(64, 256)}[scale]
    with torch.device("meta"):
        net = HAN(scale=scale, **VARIANTS["han"])
    count = sum(parameter.numel() for parameter in net.parameters())
    assert count == conv(3, 64) + body + fusion + up + conv(64, 3)
    if scale == 4:
        assert count + 2 * conv(3, 3, 1) == PUBLISHED


def test_the_variants_differ_in_layer_attention():
    assert {name: build(**keywords).la.scaled for name, keywords in VARIANTS.items()} == {
        "han": False,
        "han_scaled": True,
    }


def test_names_of_the_release():
    with torch.device("meta"):
        state = HAN(scale=4).state_dict()
    shapes = {
        "head.0.weight": (64, 3, 3, 3),
        "body.0.body.0.body.0.weight": (64, 64, 3, 3),
        "body.4.body.7.body.2.bias": (64,),
        "body.9.body.19.body.3.conv_du.0.weight": (4, 64, 1, 1),
        "body.9.body.19.body.3.conv_du.2.weight": (64, 4, 1, 1),
        "body.9.body.20.weight": (64, 64, 3, 3),
        "body.10.weight": (64, 64, 3, 3),
        "csa.gamma": (1,),
        "csa.conv.weight": (1, 1, 3, 3, 3),
        "csa.conv.bias": (1,),
        "la.gamma": (1,),
        "last_conv.weight": (64, 704, 3, 3),
        "last.weight": (64, 128, 3, 3),
        "tail.0.0.weight": (256, 64, 3, 3),
        "tail.0.2.bias": (256,),
        "tail.1.weight": (3, 64, 3, 3),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    assert len(state) == 2 + 10 * (20 * 8 + 2) + 2 + 3 + 1 + 2 + 2 + 4 + 2


def test_colour_shifts_of_a_checkpoint_are_dropped():
    source, target, x = opened(build()), build(), torch.rand(1, 3, 4, 5)
    shifts = {f"{name}.weight": torch.eye(3).view(3, 3, 1, 1) for name in ("sub_mean", "add_mean")}
    shifts |= {"sub_mean.bias": -255 * MEAN, "add_mean.bias": 255 * MEAN}
    target.load_state_dict(source.state_dict() | shifts)
    assert torch.equal(source(x), target(x))


# the contract


def test_every_parameter_learns_once_gamma_has_left_zero():
    net, x = build(), torch.rand(2, 3, 5, 4) - MEAN.view(3, 1, 1)
    for still in ({"csa.conv.weight", "csa.conv.bias"}, set()):
        net.zero_grad()
        net(x).square().mean().backward()
        assert {name for name, one in net.named_parameters() if not one.grad.abs().sum()} == still
        opened(net)


def test_half_precision_is_close():
    net, x = opened(build(lam_scaled=True)), small_image(5, 7).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
    wanted = net(x)
    assert (out - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_compiles_exports_copies_and_pickles():
    net, x = opened(build(num_blocks=1)).eval(), small_image(5, 7).float()
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(net, (x,)).module()
    for twin in (compiled, exported, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(twin(x), net(x))


def test_has_no_slots_and_refuses_other_scales_and_reductions():
    assert build().slots() == []
    with pytest.raises(ValueError, match=r"data\.scale=6 is not 2, 3, 4 or 8"):
        build(scale=6)
    with pytest.raises(ValueError, match=r"han: dim 6 leaves channel attention no channel at reduction 16"):
        build(reduction=16)
